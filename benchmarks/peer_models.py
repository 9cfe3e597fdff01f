"""Three libraries behind one interface: what is trained for which share of the time, and drawing.

Each is given the token states of a trained BLIP as text (`b l h`, zeros where there is no token)
and pictures `b 3 h w` in [-1, 1]. What is not said here is the library's default. One text in ten
is left out in training, so that all can be guided. Settings of a size were made for minutes on a
CPU: the defaults of all three are made for GPUs."""
import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from t2igen.core.config import InputError

DROPPED = 0.1            # share of the texts that are left out in training
GUIDANCE = 3.0           # as muse-maskgit-pytorch has it
SIZES = ("small", "large")


@dataclass
class Phase:
    "A model that is trained, its loss of (pixels, text), and its share of the seconds."
    model: nn.Module
    loss: Callable
    share: float = 1.0


@contextlib.contextmanager
def no_hub(width: int):
    "Both libraries that expect T5 ask the hub how wide its states are; here, ours are."
    from transformers import T5Config
    config = T5Config(d_model=width)
    with patch.object(T5Config, "from_pretrained", lambda *args, **kwargs: config):
        yield


def drop_texts(text: torch.Tensor) -> torch.Tensor:
    "Some of the texts `b l h` replaced by zeros, at random."
    kept = torch.rand(len(text), 1, 1, device=text.device) >= DROPPED
    return text * kept


class Diffusers(nn.Module):
    """`UNet2DConditionModel` in pixels: v-prediction, cosine schedule; DDIM in 50 steps with
    classifier-free guidance."""
    package = "diffusers"
    module = "diffusers"
    sizes = {"small": (16, 32, 64, 96), "large": (32, 64, 96, 128)}

    def __init__(self, side: int, size: str, width: int):
        super().__init__()
        from diffusers import DDIMScheduler, UNet2DConditionModel
        self.side = side
        self.unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=3,
            out_channels=3,
            block_out_channels=self.sizes[size],
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D",
                              "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=8,
            cross_attention_dim=width,
        )
        self.scheduler = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")

    def phases(self) -> list[Phase]:
        return [Phase(self.unet, self.loss)]

    def loss(self, pixels, text):
        noise = torch.randn_like(pixels)
        t = torch.randint(1000, (len(pixels),), device=pixels.device)
        noisy = self.scheduler.add_noise(pixels, noise, t)
        wanted = self.scheduler.get_velocity(pixels, noise, t)      # b 3 h w
        return F.mse_loss(self.predict(noisy, t, drop_texts(text)).float(), wanted)

    def predict(self, noisy, t, text):
        "The velocity `b 3 h w`; only states that are not zero are attended to."
        shown = text.abs().sum(-1) > 0                              # b l
        shown[:, 0] = True                                          # left out: a zero state
        return self.unet(noisy, t, text, encoder_attention_mask=shown).sample

    def draw(self, text):
        b = len(text)
        both = torch.cat([text, torch.zeros_like(text)])            # 2b l h
        x = torch.randn(b, 3, self.side, self.side, device=text.device)
        self.scheduler.set_timesteps(50)
        for t in self.scheduler.timesteps:
            told, untold = self.predict(torch.cat([x, x]), t, both).float().split(b)
            velocity = untold + GUIDANCE*(told - untold)            # b 3 h w
            x = self.scheduler.step(velocity, t, x).prev_sample
        return x


class ImagenPytorch(nn.Module):
    "One unet of imagen-pytorch, as `ElucidatedImagen` (EDM) trains it; drawn in 16 steps, not 32."
    package = "imagen-pytorch"
    module = "imagen_pytorch"
    sizes = {"small": 16, "large": 32}

    def __init__(self, side: int, size: str, width: int):
        super().__init__()
        with no_hub(width):
            from imagen_pytorch import ElucidatedImagen, Unet
        low = (False, False, True, True)                            # attention at 1/4 and 1/8
        unet = Unet(
            dim=self.sizes[size],
            text_embed_dim=width,
            dim_mults=(1, 2, 3, 4),
            attn_heads=4,
            attn_dim_head=32,
            layer_attns=low,
            layer_cross_attns=low,
        )
        self.imagen = ElucidatedImagen(
            unet, image_sizes=side, text_embed_dim=width, auto_normalize_img=False,
            cond_drop_prob=DROPPED, num_sample_steps=16)

    def phases(self) -> list[Phase]:
        return [Phase(self.imagen, self.loss)]

    def loss(self, pixels, text):
        return self.imagen(pixels, text_embeds=text, unet_number=1)

    def draw(self, text):
        return self.imagen.sample(text_embeds=text, cond_scale=GUIDANCE, use_tqdm=False)


class MuseMaskgit(nn.Module):
    """`VQGanVAE` (without VGG and discriminator, whose weights a hub has), then `MaskGit` on its
    16x16 codes, drawn in 18 steps. A third of the seconds is the autoencoder's, as with ours."""
    package = "muse-maskgit-pytorch"
    module = "muse_maskgit_pytorch"
    sizes = {"small": (16, 128, 4), "large": (32, 192, 6)}          # of the VAE; width, depth

    def __init__(self, side: int, size: str, width: int):
        super().__init__()
        with no_hub(width):
            from muse_maskgit_pytorch import MaskGit, MaskGitTransformer, VQGanVAE
            channels, dim, depth = self.sizes[size]
            layers = (side // 16).bit_length() - 1
            vae = VQGanVAE(dim=channels, layers=layers, codebook_size=1024, use_vgg_and_gan=False)
            transformer = MaskGitTransformer(
                num_tokens=1024, seq_len=256, dim=dim, depth=depth, dim_head=32, heads=dim // 32,
                flash=False)
        self.maskgit = MaskGit(side, transformer, vae=vae, cond_drop_prob=DROPPED)

    def phases(self) -> list[Phase]:
        return [Phase(self.maskgit.vae, self.rebuilding_loss, 1/3),
                Phase(self.maskgit.transformer, self.loss, 2/3)]

    def rebuilding_loss(self, pixels, text):
        vae = self.maskgit.vae
        codes, _, entropy = vae.encode(pixels)
        return F.l1_loss(vae.decode(codes), pixels) + entropy

    def loss(self, pixels, text):
        self.maskgit.vae.eval()
        return self.maskgit(pixels, text_embeds=text)

    def draw(self, text):
        self.maskgit.transformer.encode_text = lambda rows: text[[int(row) for row in rows]]
        with patch("muse_maskgit_pytorch.muse_maskgit_pytorch.tqdm", lambda steps, **_: steps):
            return self.maskgit.generate([str(k) for k in range(len(text))], cond_scale=GUIDANCE)


PEERS = {peer.package: peer for peer in (Diffusers, ImagenPytorch, MuseMaskgit)}


def check_installed(names):
    "Raises `InputError` if the package of a peer is missing."
    for name in names:
        if importlib.util.find_spec(PEERS[name].module) is None:
            raise InputError(f"{name} is not installed: `pip install 't2igen[peers]'`, or name "
                             "others with --peers.")
