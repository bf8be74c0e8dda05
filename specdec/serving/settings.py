"""What whoever runs a server decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Attributes:
    model: the name that requests give.
    drafter: what drafts, for whoever asks the server; ``None``: nothing.
    api_keys: any of them opens ``/v1`` and ``/metrics``; none: both are open.
    max_body_bytes: largest request.
    max_images: images of one request.
    max_choices: answers to one request, over all of its prompts.
    max_prompt_tokens: of one prompt, images included; ``None``: what the model's context holds.
    max_tokens: of one answer.
    request_seconds: after these an answer ends, however far it is.
    drain_seconds: what answers still get when the server is told to stop.
    cors_origins: web pages of other origins that may ask; none by default.
    allowed_hosts: names that the server answers to in a ``Host`` header; ``*`` is any.
    """

    model: str = "specdec"
    drafter: str | None = None
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    max_images: int = 8
    max_choices: int = 16
    max_prompt_tokens: int | None = None
    max_tokens: int = 4096
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ("*",)
