"""Text to image with BLIP, a joint VQ-VAE and a prior over its codes, in notebooks.

The names below are t2igen's public ones. Each is imported when it is first asked for, so that
`import t2igen` costs nothing. All else is internal: it may change from version to version.
"""
__version__ = "0.1.0"

from importlib import import_module

_PUBLIC = {
    "Text2Image": "sampling.text2image",
    "Run": "core.run",
    "Config": "settings",
    "load_config": "settings",
    "open_run": "settings",
    "run_pipeline": "pipeline.stages",
    "Vqvae": "vqvae.model",
    "Quantizer": "vqvae.quantizers",
    "FiniteScalarQuantizer": "vqvae.quantizers",
    "PixelSnail": "prior.pixelsnail",
    "MaskedDiffusion": "prior.diffusion",
    "CodeStore": "codes.store",
    "Blip": "blip.embed",
    "Captioner": "blip.embed",
    "scene": "gallery.scene",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 't2igen' has no attribute {name!r}")
    return getattr(import_module(f"t2igen.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
