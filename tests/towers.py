"""Vision towers with the names of InternVideo2's files."""

from __future__ import annotations


def tower_shapes(
    width: int, depth: int, hidden: int, frames: int = 8, classes: int = 0
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a vision tower with a joint position table; fine-tuned ones have classes."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + frames * 256, width),
        "patch_embed.proj.weight": (width, 3, 1, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.attn.q_norm.weight": (width,),
            f"blocks.{i}.attn.k_norm.weight": (width,),
            f"blocks.{i}.ls1.gamma": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.mlp.fc1.weight": (hidden, width),
            f"blocks.{i}.mlp.fc1.bias": (hidden,),
            f"blocks.{i}.mlp.fc2.weight": (width, hidden),
            f"blocks.{i}.mlp.fc2.bias": (width,),
            f"blocks.{i}.ls2.gamma": (width,),
        }
    for x in "qkv":
        shapes |= {
            f"clip_projector.norm1_{x}.weight": (width,),
            f"clip_projector.norm1_{x}.bias": (width,),
            f"clip_projector.cross_attn.{x}_bias": (width,),
            f"clip_projector.cross_attn.{x}.weight": (width, width),
        }
    shapes |= {
        "clip_projector.cross_attn.proj.weight": (768, width),
        "clip_projector.cross_attn.proj.bias": (768,),
    }
    if classes:
        shapes |= {
            "fc_norm.weight": (768,),
            "fc_norm.bias": (768,),
            "head.weight": (classes, 768),
            "head.bias": (classes,),
        }
    return shapes
