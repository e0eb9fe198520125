"""Attention encoder-decoder, with an optional CTC output on the encoder.

Legend: B sequences, T frames, T' encoder frames, F input features, E encoder features, S labels, V classes of the
decoder, C classes of CTC.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class EncoderDecoderOutput(NamedTuple):
    """What `EncoderDecoder.forward` returns."""

    logits: Tensor
    """(B, S, V): the label behind each of the given ones."""
    ctc_logits: Tensor | None
    """(B, T', C); None without CTC output."""
    encoder_lengths: Tensor
    """(B,)."""


class EncoderDecoder(nn.Module):
    """An encoder of frames and a decoder of labels (Chan et al. 2016, Listen, Attend and Spell; with CTC: Kim et al.
    2017, Joint CTC-Attention based End-to-End Speech Recognition).

    Args:
        encoder: (B, T, F), (B,) -> (B, T', E), (B,).
        decoder: `LSTMDecoder` or `TransformerDecoder` for encoder_dim = E.
        ctc: a CTC output on the encoder, with C = number of labels + 1 classes; blank is the last one.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, ctc: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.ctc_output = nn.Linear(int(encoder.output_dim), int(decoder.num_labels) + 1) if ctc else None  # type: ignore[arg-type]

    @property
    def bos_id(self) -> int:
        """The label that is fed first."""
        return self.decoder.bos_id  # type: ignore[return-value]

    @property
    def eos_id(self) -> int:
        """The label that ends a sequence."""
        return self.decoder.eos_id  # type: ignore[return-value]

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', E), (B,)."""
        return self.encoder(features, lengths)

    def ctc_logits(self, encoder_out: Tensor) -> Tensor | None:
        """(B, T', E) -> (B, T', C)."""
        return None if self.ctc_output is None else self.ctc_output(encoder_out)

    def forward(self, features: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> EncoderDecoderOutput:
        """Training pass: every label is predicted from the true ones before it.

        Args:
            features: (B, T, F).
            lengths: (B,).
            labels: (B, S), the first is `bos_id`.
            label_lengths: (B,).
        """
        encoder_out, encoder_lengths = self.encode(features, lengths)
        logits = self.decoder(labels, label_lengths, encoder_out, encoder_lengths)
        return EncoderDecoderOutput(logits, self.ctc_logits(encoder_out), encoder_lengths)
