"""A causal byte-level transformer, in flax.nnx, with low-rank adapters or without."""

from collections.abc import Callable

import jax
from flax import nnx


class Block(nnx.Module):
    """A pre-layernorm transformer layer, of one sequence ``[length, width]``."""

    def __init__(self, width: int, heads: int, linear: Callable, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query, self.key, self.value, self.output = (
            linear(width, width, rngs=rngs) for _ in range(4)
        )
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = linear(width, 4 * width, rngs=rngs)
        self.down = linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.attention_norm(x)
        split = lambda y: y.reshape(len(y), self.heads, -1)
        q, k, v = (split(of(normed)) for of in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class LanguageModel(nnx.Module):
    """Logits of the next byte at each place of a text ``[length]``.

    Args:
      rank: of the adapters of every linear layer of the blocks; 0 for none.
      remat: whether a reverse pass computes each block again.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        width: int = 96,
        layers: int = 4,
        heads: int = 4,
        length: int = 64,
        rank: int = 0,
        remat: bool = False,
    ):
        linear = nnx.Linear
        if rank:
            linear = lambda *sizes, rngs: nnx.LoRALinear(
                *sizes, lora_rank=rank, rngs=rngs
            )
        self.remat = remat
        self.embed = nnx.Embed(256, width, rngs=rngs)
        place = 0.02 * jax.random.normal(rngs.params(), (length, width))
        self.place = nnx.Param(place)
        self.blocks = nnx.List(
            [Block(width, heads, linear, rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.embed(text) + self.place[...]
        for block in self.blocks:
            x = rematerialised(block, x) if self.remat else block(x)
        return self.head(self.norm(x))


def rematerialised(block: Block, x: jax.Array) -> jax.Array:
    """The output of a block, which a reverse pass computes again."""
    graph, state = nnx.split(block)
    return jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))(state, x)
