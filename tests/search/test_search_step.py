"""Searches as forward steps, on models with the interfaces of the real ones, against the searches themselves."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from returnn_hydra.batch import Batch, Output, TensorSpec
from returnn_hydra.search.ctc_steps import CTCAlign, CTCBestPath, CTCPrefix
from returnn_hydra.search.label_sync_step import LabelSync
from returnn_hydra.search.result import Hypothesis, unpack
from returnn_hydra.search.search_step import SearchStep
from returnn_hydra.search.transducer_steps import TransducerBeam, TransducerGreedy

V = 3
VOCAB = SimpleNamespace(labels=["a", "b", " "])
EXTERN_DATA = {"data": TensorSpec(dim=8), "classes": TensorSpec(dim=V, sparse=True, vocab=VOCAB)}


class CTCModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(8, V + 1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return 4 * self.output(features), lengths


class EncoderDecoder(nn.Module):
    bos_id = eos_id = V

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.decoder.num_classes = V + 1
        self.output = nn.Linear(8, V + 1)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return features[:, ::2], (lengths + 1) // 2

    def ctc_logits(self, encoder: Tensor) -> Tensor:
        return 4 * self.output(encoder)


@pytest.fixture
def batch(toy: SimpleNamespace) -> Batch:
    encoded = toy.encoded(3, 8, V + 1, seed=1)
    classes = torch.tensor([[0, 1, 2], [1, 0, 0], [1, 1, 0]])
    lengths = {"data": encoded.lengths, "classes": torch.tensor([3, 1, 2])}
    return Batch({"data": encoded.encoder, "classes": classes}, lengths, ["x", "y", "z"])


@pytest.fixture
def models(toy: SimpleNamespace) -> SimpleNamespace:
    torch.manual_seed(5)
    lm = toy.LanguageModel(V + 1)
    lm.num_classes, lm.bos_id, lm.eos_id = V + 1, V, V
    transducer = toy.Transducer(V)
    transducer.encode = lambda features, lengths: (features, lengths)
    return SimpleNamespace(ctc=CTCModel(), attention=EncoderDecoder(toy.Decoder(V + 1)), lm=lm, transducer=transducer)


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    words = {"<s>": -99.0, "</s>": -0.6, "a": -0.5, "b": -0.8, "<space>": -0.4}
    lines = ["\\data\\", "ngram 1=5", "\\1-grams:", *(f"{p} {word}" for word, p in words.items()), "\\end\\"]
    path.write_text("\n".join(lines))
    return path


def found(step: SearchStep, model: nn.Module, batch: Batch) -> list[list[Hypothesis]]:
    """Runs the step as task=forward does: in inference mode, results as arrays."""
    with torch.inference_mode():
        rows = {name: output.per_sequence() for name, output in step(model.eval(), batch).items()}
    return [unpack({name: arrays[b] for name, arrays in rows.items()}) for b in range(batch.num_seqs)]


def test_every_step_runs_in_inference_mode(batch: Batch, models: SimpleNamespace, arpa: Path) -> None:
    options = {"target_key": "classes", "extern_data": EXTERN_DATA}
    scales = {"am": 1.0, "ctc": 0.3, "lm": 0.2, "ngram": 0.1, "ilm": -0.1}
    lms = {"lm": models.lm, "ngram": arpa, "ilm": models.lm}
    cases = [
        (CTCBestPath(**options), models.ctc, 1),
        (CTCPrefix(lm=models.lm, num_best=3, **options), models.ctc, 3),
        (CTCPrefix(lm=arpa, num_best=3, with_times=True, **options), models.attention, 3),
        (LabelSync(scales, lms, num_best=2, with_times=True, **options), models.attention, 2),
        (LabelSync({"am": 1.0, "lm": 0.2}, {"lm": models.lm}, **options), models.transducer, 1),
        (TransducerGreedy(**options), models.transducer, 1),
        (TransducerBeam(num_best=2, lm=arpa, **options), models.transducer, 2),
    ]
    for step, model, num_best in cases:
        for seq, hyps in enumerate(found(step, model, batch)):
            assert len(hyps) == num_best, step
            assert all(math.isfinite(hyp.score) for hyp in hyps)
            assert [hyp.score for hyp in hyps] == sorted((hyp.score for hyp in hyps), reverse=True)
            assert all(0 <= label < V for hyp in hyps for label in hyp.labels)
            if getattr(step, "with_times", False):
                frames = int(batch.lengths["data"][seq] + 1) // 2
                for hyp in hyps:
                    assert len(hyp.times) == len(hyp.labels)
                    assert all(0 <= start < end <= frames for start, end in hyp.times)


def test_reference_is_passed_on(batch: Batch, models: SimpleNamespace) -> None:
    outputs = CTCBestPath(target_key="classes")(models.ctc, batch)
    assert isinstance(outputs["reference"], Output)
    assert [row.tolist() for row in outputs["reference"].per_sequence()] == [[0, 1, 2], [1], [1, 1]]
    assert "reference" not in CTCBestPath()(models.ctc, batch)


def test_greedy_equals_beam_1_path_of_ctc(batch: Batch, models: SimpleNamespace) -> None:
    """With peaked posteriors the best path's labels are the best labels, too."""
    with torch.no_grad():
        models.ctc.output.weight *= 50
    greedy = found(CTCBestPath(), models.ctc, batch)
    beam = found(CTCPrefix(with_times=True), models.ctc, batch)
    assert [hyps[0].labels for hyps in beam] == [hyps[0].labels for hyps in greedy]
    assert [hyps[0].times for hyps in beam] == [hyps[0].times for hyps in greedy]


def test_alignment_of_the_reference(batch: Batch, models: SimpleNamespace) -> None:
    step = CTCAlign(target_key="classes")
    rows = {name: output.per_sequence() for name, output in step(models.attention, batch).items()}
    for seq, labels in enumerate([[0, 1, 2], [1], [1, 1]]):
        (hyp,) = unpack({name: arrays[seq] for name, arrays in rows.items()})
        frames = int(batch.lengths["data"][seq] + 1) // 2
        assert hyp.labels == labels
        assert len(rows["alignment"][seq]) == len(rows["positions"][seq]) == frames
        for index, (start, end) in enumerate(hyp.times):
            assert (rows["alignment"][seq][start:end] == labels[index]).all()
            assert (rows["positions"][seq][start:end] == index).all()
    with pytest.raises(ValueError, match="target_key=None is no stream"):
        CTCAlign()(models.attention, batch)
    short = Batch(
        {**batch.tensors, "data": batch["data"][:, :2]},
        {**batch.lengths, "data": torch.tensor([2, 2, 2])},
        ["x", "y", "z"],
    )
    with pytest.raises(ValueError, match="sequence x has 1 frames, but its labels need at least 3"):
        step(models.attention, short)


def test_lexicon_and_word_model(batch: Batch, models: SimpleNamespace, tmp_path: Path) -> None:
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("AB a b\nBA b a\nA a\n")
    arpa = tmp_path / "words.arpa"
    arpa.write_text("\\data\\\nngram 1=4\n\\1-grams:\n-0.5 </s>\n-0.3 AB\n-0.7 BA\n-0.9 A\n\\end\\\n")
    step = CTCPrefix(lm=arpa, lm_unit="word", lexicon=lexicon, target_key="classes", extern_data=EXTERN_DATA)
    for hyps in found(step, models.ctc, batch):
        assert step.lexicon is not None
        words = [step.lexicon.words[word] for word in hyps[0].words]
        assert "".join(words).lower() == "".join(VOCAB.labels[label] for label in hyps[0].labels)


def test_errors_teach(batch: Batch, models: SimpleNamespace, arpa: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'lm'"):
        LabelSync({"am": 1.0, "lmm": 0.1}, {"lm": models.lm})
    with pytest.raises(ValueError, match=r"extern_data\.classes must have a vocab"):
        CTCPrefix(lm=arpa, target_key="classes")(models.ctc, batch)
    with pytest.raises(ValueError, match=r"scorers\.ilm: ToyTransducer has no attention decoder"):
        LabelSync({"am": 1.0, "ilm": -0.1})(models.transducer, batch)
    with pytest.raises(ValueError, match="needs a model with a decoder, or a transducer, not CTCModel"):
        LabelSync({"am": 1.0})(models.ctc, batch)
    models.lm.num_classes = 9
    for step, model in [
        (CTCPrefix(lm=models.lm), models.ctc),
        (TransducerBeam(lm=models.lm), models.transducer),
        (LabelSync({"am": 1.0, "lm": 0.1}, {"lm": models.lm}), models.attention),
    ]:
        with pytest.raises(ValueError, match="the language model has 9 labels, the search 4"):
            step(model, batch)
    with pytest.raises(ValueError, match="model with a CTC output"):
        CTCPrefix()(models.transducer, batch)
