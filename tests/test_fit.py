"Pictures of any shape become squares as told, and a sentence says what that costs."
import numpy as np
import pytest
from PIL import Image, ImageDraw

from t2igen.core.config import InputError
from t2igen.core.files import write_lines
from t2igen.data.augment import augment
from t2igen.data.folder import folder_records
from t2igen.data.settings import DataConfig
from t2igen.settings import load_config

GREEN = (60, 150, 70)
RED = (200, 40, 40)


def wide_pictures(folder, n: int = 12):
    "Pictures of 96x48 with a red post at the left edge, on green."
    folder.mkdir()
    rows = []
    for i in range(n):
        image = Image.new("RGB", (96, 48), GREEN)
        ImageDraw.Draw(image).rectangle((3, 10, 12, 36 - i), fill=RED)
        image.save(folder / f"{i:02d}.png")
        rows.append(dict(file_name=f"{i:02d}.png", text="a " + "very "*i + "small post"))
    write_lines(folder / "metadata.jsonl", rows)
    return DataConfig(dataset="folder", path=str(folder), image_size=64)


def posts(images: np.ndarray) -> int:
    "How many pictures show something red."
    reds = (images[..., 0] > 150) & (images[..., 1] < 90)
    return int(reds.any((1, 2)).sum())


def test_what_a_crop_loses_is_said(tmp_path, capsys):
    cfg = wide_pictures(tmp_path / "wide")
    _, images, _ = folder_records(cfg)
    said = capsys.readouterr().out
    assert posts(images) == 0
    assert "12 of 12 pictures lose more than a fifth" in said and "data.fit=pad" in said
    assert "12 of 12 pictures are smaller than 64 pixels a side and were enlarged" in said


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_other_ways_keep_all(tmp_path, capsys, fit):
    cfg = wide_pictures(tmp_path / "wide").model_copy(update={"fit": fit})
    _, images, _ = folder_records(cfg)
    assert posts(images) == 12
    assert "lose more" not in capsys.readouterr().out
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.abs(corners.astype(int) - GREEN).max() <= 2


def test_white_on_nothing_is_noticed(tmp_path, capsys):
    rows = []
    for i in range(12):
        image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
        color = "white" if i < 4 else (20*i, 40, 90)
        ImageDraw.Draw(image).ellipse((8, 8, 40, 20 + 3*i), fill=color)
        image.save(tmp_path / f"{i:02d}.png")
        rows.append(dict(file_name=f"{i:02d}.png", text=f"moon {i}"))
    write_lines(tmp_path / "metadata.jsonl", rows)
    cfg = DataConfig(dataset="folder", path=str(tmp_path), image_size=64)
    folder_records(cfg)
    assert "4 of 12 pictures are of one color throughout" in capsys.readouterr().out
    _, images, _ = folder_records(cfg.model_copy(update={"background": "#808080"}))
    assert "one color" not in capsys.readouterr().out
    assert (images[:, 0, 0] == 128).all()
    assert images[0].max() == 255


def test_colors_and_words_are_checked():
    with pytest.raises(InputError, match="'gray-ish' is no color"):
        load_config(overrides={"data.background": "gray-ish"})
    with pytest.raises(InputError, match="data.fit"):
        load_config(overrides={"data.fit": "stretch"})
    with pytest.raises(InputError, match="data.mirror"):
        load_config(overrides={"data.mirror": "sometimes"})
    assert load_config(overrides={"data.mirror": "false"}).data.mirror is False
    assert load_config(overrides={"data.mirror": "auto"}).data.mirror == "auto"


def test_mirrors_are_said(tmp_path, capsys):
    cfg = wide_pictures(tmp_path / "wide").model_copy(update={"fit": "pad", "augment": 2})
    records, images, _ = folder_records(cfg)
    records = [r.model_copy(update={"split": "train"}) for r in records]
    records[3] = records[3].model_copy(update={"text": "a post, pointing rightwards"})
    more, varied = augment(records, images, cfg)
    assert len(more) == 36
    assert "but not those of" in capsys.readouterr().out
    side = {r.id: posts(i[None, :, :32]) for r, i in zip(more, varied)}
    assert side[f"{records[3].id}-copy1"] == 1
    assert side[f"{records[3].id}-copy2"] == 1
