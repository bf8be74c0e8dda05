"""Verifiers: large models behind the engine's ``Verifier`` interface."""

from specdec.verifiers.transformers_model import TransformersVerifier

__all__ = ["TransformersVerifier"]
