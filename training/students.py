"""Drafters that learn: networks that turn a batch of ``training/batches.py`` into a loss.

The loss is a sum over the batch, weighted; the trainer divides it by the weights of all batches of
a step. Knows no optimizer and no files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from specdec.drafters.eagle_head import EagleHead
from specdec.training.losses import Mixture, chunked_loss, top_loss

ACCEPTANCE: Mixture = {"tv": 1.0, "ce": 0.1}
EVENLY: Mixture = {"ce": 0.5, "kl": 0.5}


class TextStudent(nn.Module):
    """A small language model that sees no image. Takes batches of ``TextCollator``."""

    def __init__(self, model: LlamaForCausalLM, mixture: Mixture = EVENLY) -> None:
        super().__init__()
        self.model, self.mixture = model, mixture

    def forward(
        self, ids: Tensor, places: Tensor, top_ids: Tensor, top_p: Tensor, weights: Tensor
    ) -> Tensor:
        """The batch's summed loss."""
        # Causal attention never looks at the padding on the right, so no mask is needed.
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        said = hidden.flatten(0, 1)[places]
        return top_loss(said, self.model.lm_head, top_ids, top_p, self.mixture, weights)


class VisionStudent(nn.Module):
    """A small LVLM. Takes batches of ``VisionCollator``."""

    def __init__(self, model: PreTrainedModel, mixture: Mixture = EVENLY) -> None:
        super().__init__()
        self.model, self.mixture = model, mixture

    def forward(
        self,
        ids: Tensor,
        places: Tensor,
        top_ids: Tensor,
        top_p: Tensor,
        weights: Tensor,
        **images: Tensor,
    ) -> Tensor:
        """The batch's summed loss; ``images`` is what else the LVLM takes."""
        # As above: text towers are causal, and positions do not depend on what comes behind them.
        out = self.model.base_model(input_ids=ids, use_cache=False, **images)
        said = out.last_hidden_state.flatten(0, 1)[places]
        head = self.model.get_output_embeddings()
        return top_loss(said, head, top_ids, top_p, self.mixture, weights)


class EagleStudent(nn.Module):
    """An EAGLE head under training-time test: from each row it drafts k tokens, the first from the
    verifier's states, the others from its own. Takes batches of ``EagleCollator``.

    At step s a row's query sees the keys of step 0 up to the row's slot, and its own of the steps
    1 … s; so it stands where a drafted node does, with the tokens of the answer as its branch.

    Args:
        head: the head.
        teacher_head: the verifier's output matrix ``(V, H)``; gets no gradient.
        embeddings: the verifier's ``(V, hidden)``, scaled as it scales them, if the head has none.
        noise: half width of the uniform noise on the verifier's states while it learns (ViSpec).
        softcap: of the verifier's logits.
    """

    teacher_head: Tensor
    embeddings: Tensor | None

    def __init__(
        self,
        head: EagleHead,
        teacher_head: Tensor,
        embeddings: Tensor | None = None,
        *,
        mixture: Mixture = ACCEPTANCE,
        noise: float = 0.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        if (embeddings is None) != (head.embed_tokens is not None):
            raise ValueError(
                "an EAGLE head reads either its own embeddings or the verifier's, but "
                f"own_embeddings is {head.config.own_embeddings} and the verifier's are "
                f"{'missing' if embeddings is None else 'given'}"
            )
        self.head, self.mixture, self.noise, self.softcap = head, mixture, noise, softcap
        self.register_buffer("teacher_head", teacher_head.detach(), persistent=False)
        frozen = None if embeddings is None else embeddings.detach()
        self.register_buffer("embeddings", frozen, persistent=False)

    def forward(self, last: Tensor, rows: Tensor, weights: Tensor, **slots: Tensor) -> Tensor:
        """The batch's summed loss."""
        states = self.states(**slots)
        drafts = torch.stack(
            [state.flatten(0, 1)[rows[:, step]] for step, state in enumerate(states)], 1
        )
        config = self.head.config
        return chunked_loss(
            drafts,
            nn.Sequential(self.head.norm, self.head.lm_head),
            last,
            self.teacher_head,
            None if config.draft_vocab_size == len(self.teacher_head) else self.head.spoken,
            self.mixture,
            weights,
            softcap=self.softcap,
        )

    def states(
        self,
        ids: Tensor,
        starts: Tensor,
        taps: Tensor,
        positions: Tensor,
        later_ids: Tensor,
        later_positions: Tensor,
        **visual: Tensor,
    ) -> list[Tensor]:
        """What the head computes for the rows at each step, k times ``(B, R, hidden)``."""
        rows = later_ids.shape[-1]
        attention = _Attention(starts, ids.shape[1], rows, visual)
        embeds, features = self._embed(ids), self.head.fuse(self._noisy(taps))
        added = None
        if self.head.compress is not None:
            embeds, features, added = self._with_images(embeds, features, **visual)
        hidden = self.head(embeds, features, positions, attention)[:, -rows:]
        states = [hidden]
        for step in range(len(later_ids)):
            features = hidden if added is None else hidden + added[:, -rows:]
            hidden = self.head(
                self._embed(later_ids[step]), features, later_positions[step], attention
            )
            states.append(hidden)
        return states

    def _embed(self, ids: Tensor) -> Tensor:
        if self.head.embed_tokens is not None:
            embeds: Tensor = self.head.embed_tokens(ids)
            return embeds
        assert self.embeddings is not None
        return self.embeddings[ids].to(self.head.fc.weight.dtype)

    def _noisy(self, taps: Tensor) -> Tensor:
        if not self.training or not self.noise:
            return taps
        return taps + (2 * torch.rand_like(taps, dtype=torch.float32) - 1) * self.noise

    def _with_images(
        self,
        embeds: Tensor,
        features: Tensor,
        image_taps: Tensor,
        image_sizes: Tensor,
        query_slots: Tensor,
        seen: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings and features with what the queries read in their slots, and the vectors
        ``(B, S, hidden)`` that are added to the features of every step.
        """
        assert self.head.compress is not None
        fused = self.head.fuse(self._noisy(image_taps))
        looked = [self.head.compress(image) for image in fused.split(image_sizes.tolist())]
        vectors = torch.stack([torch.zeros_like(features[0, 0]), *(each for _, each in looked)])
        added = vectors[seen]
        features = features + added
        if looked:
            read = torch.cat([each for each, _ in looked])
            embeds, features = (
                x.flatten(0, 1).index_copy(0, query_slots, read.to(x.dtype)).view_as(x)
                for x in (embeds, features)
            )
        return embeds, features, added


class _Attention:
    """Attention of the slots at step 0, of the rows at later steps; it keeps their keys."""

    def __init__(self, starts: Tensor, slots: int, rows: int, visual: dict[str, Tensor]) -> None:
        self.rows = rows
        self.keys: Tensor | None = None  # of step 0, (B, Hkv, visual + slots, D)
        self.values: Tensor | None = None
        self.own: list[tuple[Tensor, Tensor]] = []  # of later steps, (B, Hkv, R, D) each
        key = torch.arange(slots, device=starts.device)
        query = key[-rows:, None]
        # A row of the padding sees itself, so that no softmax is over nothing.
        sees = (key <= query) & ((key >= starts[:, None, None]) | (key == query))
        self.visual = None
        if "visual_keys" in visual:
            self.visual = visual["visual_keys"], visual["visual_values"]
            there = torch.arange(self.visual[0].shape[2], device=starts.device)
            there = there < visual["visual_counts"][:, None, None]
            sees = torch.cat([there.expand(-1, rows, -1), sees], -1)
        self.sees = sees[:, None, None]  # (B, 1, 1, R, visual + slots)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.keys is not None and self.values is not None:
            self.own.append((k, v))
            return self._attend(q, self.keys, self.values)
        if self.visual is not None:
            seen = self.visual
            k, v = (torch.cat([x.to(y.dtype), y], 2) for x, y in zip(seen, (k, v), strict=True))
        self.keys, self.values = k, v
        # Only rows are wanted; of other slots the keys are all that counts.
        out = self._attend(q[:, :, -self.rows :], k, v)
        return torch.cat([torch.zeros_like(q[:, :, : -self.rows]), out], 2)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = q.unflatten(1, (keys.shape[1], -1)) * q.shape[-1] ** -0.5
        scores = torch.einsum("bhgrd,bhkd->bhgrk", grouped, keys)
        scores = scores.masked_fill(~self.sees, -torch.inf)
        own = [(grouped * key[:, :, None]).sum(-1, keepdim=True) for key, _ in self.own]
        shares = torch.cat([scores, *own], -1).softmax(-1).to(q.dtype)
        count = scores.shape[-1]
        out = torch.einsum("bhgrk,bhkd->bhgrd", shares[..., :count], values)
        for number, (_, value) in enumerate(self.own):
            out = out + shares[..., count + number, None] * value[:, :, None]
        return out.flatten(1, 2)
