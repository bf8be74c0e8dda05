"""The network of an EAGLE-3 drafter: one decoder layer over token and hidden state.

Knows no cache and no trees: who calls it brings attention along. Parameters are named as in raw
EAGLE-3 checkpoints (Li et al., 2503.01840), so that these load as they are.

    f_j   = fc([s_lo; s_mid; s_hi]) of token j, as the verifier saw it, or h_j of the head itself
    x     = [input_layernorm(e_j+1); hidden_norm(f_j)]
    a     = f_j + o_proj(attention(q_proj(x), k_proj(x), v_proj(x)))
    h_j+1 = a + mlp(post_attention_layernorm(a))
    p(t_j+2 | …) = softmax(lm_head(norm(h_j+1)))

So what stands for token j + 1 is its embedding and the state behind the token before it. With
``norm_before_residual`` the residual is ``hidden_norm(f_j)``.

Attention over visual tokens, one of:

- ``hidden``: none of its own; visual tokens are tokens like all others, known by their hidden
  states. This is what other engines can run.
- ``compressed``: tokens of the text, and ``queries`` learned ones per image that read its states,
  besides a global image vector that is added to every f (ViSpec, 2509.15235).
- ``shared``: tokens of the text, and the verifier's own keys of the image in one of its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specdec.drafters.rope import Rope, rotate

Vision = Literal["hidden", "compressed", "shared"]
_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "draft_vocab_size", "target_hidden_size", "queries", "page_size"),
)
# Queries (B, Hq, T, D), new keys and values (B, Hkv, T, D) to (B, Hq, T, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EagleConfig:
    """Geometry of a head, and of the verifier that it reads.

    Attributes:
        hidden_size: width of the head, which is that of the embeddings it reads.
        intermediate_size: of its MLP.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: size of each.
        vocab_size: the verifier's.
        draft_vocab_size: tokens that it can propose; ``d2t`` says which.
        target_hidden_size: width of the verifier.
        layers: whose inputs in the verifier it reads, as transformers counts hidden states.
        rope_parameters: as in transformers' configs; ``mrope_section`` for positions of 3 rows.
        rms_norm_eps: of all norms.
        norm_before_residual: see above.
        own_embeddings: it has embeddings of its own; else it reads the verifier's.
        vision: how it sees the image.
        queries: learned queries per image, if compressed.
        shared_layer: layer of the verifier whose keys it reads, if shared.
        page_size: tokens a page, by which keys are read, if shared.
        keep: share of the pages that are read, if shared.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    layers: tuple[int, ...]
    rope_parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0}
    )
    rms_norm_eps: float = 1e-6
    norm_before_residual: bool = False
    own_embeddings: bool = False
    vision: Vision = "hidden"
    queries: int = 1
    shared_layer: int | None = None
    page_size: int = 16
    keep: float = 1.0

    def __post_init__(self) -> None:
        layers = self.layers if self.shared_layer is None else (*self.layers, self.shared_layer)
        right = {
            **{name: _is_count(getattr(self, name), 1) for name in _SIZES},
            "layers, shared_layer": len(layers) > 0 and all(_is_count(each, 0) for each in layers),
            "rms_norm_eps": _is_within(self.rms_norm_eps, 1.0),
            "keep": _is_within(self.keep, 1.0),
            "vision": self.vision in get_args(Vision),
            "norm_before_residual, own_embeddings": {True, False}
            >= {self.norm_before_residual, self.own_embeddings},
        }
        if wrong := [name for name, is_right in right.items() if not is_right]:
            raise ValueError(f"settings of an EAGLE head that cannot be: {'; '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EagleConfig:  # Any: JSON values
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: an unknown name, or one is missing.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := values.keys() - known:
            raise ValueError(f"unknown settings of an EAGLE head: {', '.join(sorted(unknown))}")
        try:
            return cls(**{**values, "layers": tuple(values["layers"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"settings of an EAGLE head are incomplete: {error}") from error


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_within(value: object, most: float) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= most


class _Attention(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        wide, kv = 2 * config.hidden_size, config.num_key_value_heads * config.head_dim
        own = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(wide, own, bias=False)
        self.k_proj = nn.Linear(wide, kv, bias=False)
        self.v_proj = nn.Linear(wide, kv, bias=False)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class _MLP(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = nn.RMSNorm(size, eps)
        self.hidden_norm = nn.RMSNorm(size, eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        self.mlp = _MLP(config)

    def forward(
        self, embeds: Tensor, features: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> Tensor:
        normed = self.hidden_norm(features)
        x = torch.cat([self.input_layernorm(embeds), normed], -1)
        residual = normed if self.norm_before_residual else features
        mixed = residual + self.self_attn(x, cos, sin, attend)
        hidden: Tensor = mixed + self.mlp(self.post_attention_layernorm(mixed))
        return hidden


class _Compressor(nn.Module):
    """What learned queries read of an image's fused states; their mean is the global vector."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.queries = nn.Parameter(torch.randn(config.queries, size) * size**-0.5)
        self.norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.global_proj = nn.Linear(size, size, bias=False)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Fused states ``(n, H)`` of an image to what is read ``(queries, H)`` and the global
        vector ``(H,)``.
        """
        normed = self.norm(fused)
        weights = (self.queries @ self.k_proj(normed).T * fused.shape[-1] ** -0.5).softmax(-1)
        read = weights @ self.v_proj(normed)
        return read, self.global_proj(read.mean(0))


class EagleHead(nn.Module):
    """The head; see the module's docstring.

    Args:
        config: its geometry.

    Attributes:
        d2t: int64 ``(draft_vocab,)``: token of the verifier − number in ``lm_head``.
    """

    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.config = config
        width = len(config.layers) * config.target_hidden_size
        self.fc = nn.Linear(width, config.hidden_size, bias=False)
        self.midlayer = _Layer(config)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.embed_tokens = (
            nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embeddings else None
        )
        self.compress = _Compressor(config) if config.vision == "compressed" else None
        self.rope = Rope(config.head_dim, config.rope_parameters)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.speak(torch.arange(config.draft_vocab_size))

    def speak(self, tokens: Tensor) -> None:
        """Propose these tokens of the verifier, int64 ``(draft_vocab,)``, ascending."""
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d.zero_()
        self.t2d[tokens] = True

    @property
    def spoken(self) -> Tensor:
        """The verifier's tokens that it can propose, int64 ``(draft_vocab,)``."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def fuse(self, states: Tensor) -> Tensor:
        """The verifier's tapped states ``(…, layers * H)`` as features ``(…, hidden)``."""
        fused: Tensor = self.fc(states.to(self.fc.weight.dtype))
        return fused

    def forward(
        self, embeds: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> Tensor:
        """States ``(B, T, hidden)`` behind tokens with these embeddings ``(B, T, hidden)``, behind
        these features; they are the features of the next ones.

        Args:
            positions: int64 ``(R, T)`` or ``(R, B, T)``: of the tokens *before* them, whose
                features these are.
            attend: attention; it looks after the keys.
        """
        cos, sin = self.rope(positions, embeds.dtype)
        hidden: Tensor = self.midlayer(embeds, features, cos, sin, attend)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Over the tokens that it can propose, ``(…, draft_vocab)``, from its states."""
        scores: Tensor = self.lm_head(self.norm(hidden))
        return scores
