"""Small tasks with generated sequences: no files, any number of sequences, bit by bit what RETURNN generates.

Sequence i of an epoch is drawn from its own random stream, `RandomState((seed of the epoch, i))`: the same whatever was
read before, and another one in the next pass over the corpus. As in RETURNN the seed of the epoch is the number of the
pass plus an offset, or fixed.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import Dataset, Examples
from returnn_hydra.data.order import SEED_STRIDE

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class GeneratingDataset(Dataset):
    """Sequences out of a random stream. A task says how to `generate` one."""

    labels: Mapping[str, str]
    """Stream to the characters that its classes stand for."""

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        seed: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int = 1,
    ) -> None:
        """
        Args:
            num_seqs: sequences of one pass over the corpus.
            seed: 1 gives RETURNN's sequences.
            fixed_random_seed: the same sequences in every epoch.
            random_seed_offset: RETURNN's; default: from `seed`.
            partition_epoch: epochs that share one pass over the corpus.
        """
        if num_seqs < 1 or partition_epoch < 1:
            raise ValueError(f"num_seqs={num_seqs}, partition_epoch={partition_epoch}: expected numbers from 1")
        self.num_seqs = num_seqs
        self.partition_epoch = partition_epoch
        self.fixed_random_seed = fixed_random_seed
        self.offset = (seed - 1) * SEED_STRIDE if random_seed_offset is None else random_seed_offset
        self.epoch = 1
        self._lengths: dict[str, np.ndarray] | None = None

    @abstractmethod
    def generate(self, rng: np.random.RandomState, index: int) -> dict[str, np.ndarray]:
        """The streams of one sequence.

        Args:
            rng: at the start of the sequence's random stream.
            index: number of the sequence in the corpus.
        """

    def at_epoch(self, epoch: int) -> GeneratingDataset:
        if epoch == self.epoch:
            return self
        other = copy.copy(self)
        other.epoch = epoch
        other._lengths = None
        return other

    def __len__(self) -> int:
        return self.num_seqs

    def seq_tags(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [f"seq-{index}" for index in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if self._lengths is None:
            sequences = [self._sequence(index) for index in range(self.num_seqs)]
            self._lengths = {
                name: np.array([len(sequence[name]) for sequence in sequences], np.int64) for name in self.streams
            }
        return self._lengths[stream]

    def read(self, indices: Sequence[int] | np.ndarray) -> Examples:
        sequences = [self._sequence(int(index)) for index in indices]
        streams = {name: [sequence[name] for sequence in sequences] for name in self.streams}
        return Examples(self.seq_tags(indices), streams)

    def _sequence(self, index: int) -> dict[str, np.ndarray]:
        return self.generate(self._stream(index), index)

    def _stream(self, index: int) -> np.random.RandomState:
        """The random stream of a sequence."""
        seed = self.fixed_random_seed
        if seed is None:
            seed = ((self.epoch - 1) // self.partition_epoch + 1 + self.offset) % 2**32
        return np.random.RandomState((seed, index))


class CharacterTask(GeneratingDataset):
    """Characters in, one-hot (stream `data`), and a character out for every one of them (stream `classes`)."""

    inputs = ""
    outputs = ""

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        seed: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int = 1,
    ) -> None:
        super().__init__(
            num_seqs,
            seed=seed,
            fixed_random_seed=fixed_random_seed,
            random_seed_offset=random_seed_offset,
            partition_epoch=partition_epoch,
        )
        self.streams = {
            "data": TensorSpec(dim=len(self.inputs)),
            "classes": TensorSpec(dim=len(self.outputs), sparse=True, same_length_as="data"),
        }
        self.labels = {"data": self.inputs, "classes": self.outputs}

    @abstractmethod
    def texts(self, rng: np.random.RandomState) -> tuple[str, str]:
        """Input and output, equally long."""

    def generate(self, rng: np.random.RandomState, index: int) -> dict[str, np.ndarray]:
        text, target = self.texts(rng)
        data = np.zeros((len(text), len(self.inputs)), np.float32)
        data[np.arange(len(text)), [self.inputs.index(char) for char in text]] = 1
        return {"data": data, "classes": np.array([self.outputs.index(char) for char in target], np.int32)}


def choice(rng: np.random.RandomState, options: Sequence[str]) -> str:
    """One of the options, by the same draw as rng.choice, but much faster."""
    return options[rng.randint(0, len(options))]


class Task12AX(CharacterTask):
    """The 12AX task (O'Reilly and Frank 2006): the last 1 or 2 says which pair counts, AX or BY; its end gives an R."""

    inputs = "123ABCXYZ"
    outputs = "LR"

    def texts(self, rng: np.random.RandomState) -> tuple[str, str]:
        text = self._text(rng)
        return text, self.solve(text)

    def _text(self, rng: np.random.RandomState) -> str:
        length = rng.randint(10, 100)
        text = choice(rng, ("", "1", "2"))
        while len(text) < length:
            if rng.uniform() < 0.5:
                text += choice(rng, "12")
            if rng.uniform() < 0.9:
                text += choice(rng, ("AX", "BY"))
            while rng.uniform() < 0.5:
                text += choice(rng, self.inputs)
        return text[:length]

    @staticmethod
    def solve(text: str) -> str:
        """R where an X or Y completes 1..A..X or 2..B..Y, else L."""
        outer, inner, target = "", "", ""
        for char in text:
            target += "R" if outer + inner + char in ("1AX", "2BY") else "L"
            if char in "12":
                outer = char
            elif char in "AB":
                inner = char
            elif char in "XY":
                inner = ""
        return target

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if self._lengths is None:  # the length is the first draw: no need to generate the sequences
            lengths = np.array([self._length(index) for index in range(self.num_seqs)], np.int64)
            self._lengths = {"data": lengths, "classes": lengths}
        return self._lengths[stream]

    def _length(self, index: int) -> int:
        return self._stream(index).randint(10, 100)


class EpisodicCopyTask(CharacterTask):
    """Remember some characters over a long pause, and repeat them (Arjovsky et al. 2015, with random lengths)."""

    inputs = outputs = " .01234567"

    def texts(self, rng: np.random.RandomState) -> tuple[str, str]:
        length = rng.randint(1, 10)
        chars = "".join([choice(rng, self.inputs[2:]) for _ in range(length)])
        pause = " " * rng.randint(1, 100)
        return chars + pause + "." * (length + 2), " " * length + pause + " " + chars + "."


class XmlTask(CharacterTask):
    """Close the tags that were opened: a stack (Jozefowicz, Zaremba and Sutskever 2015).

    The output is the next character, or a blank where it can't be known.
    """

    inputs = outputs = " <>/abcdefgh"

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        limit_stack_depth: int = 4,
        seed: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int = 1,
    ) -> None:
        super().__init__(
            num_seqs,
            seed=seed,
            fixed_random_seed=fixed_random_seed,
            random_seed_offset=random_seed_offset,
            partition_epoch=partition_epoch,
        )
        self.limit_stack_depth = limit_stack_depth

    def texts(self, rng: np.random.RandomState) -> tuple[str, str]:
        text, target = " ", "<"
        stack: list[str] = []
        while True:
            if not stack or (len(stack) < self.limit_stack_depth and rng.rand() > 0.6):
                length = rng.randint(1, 10)
                tag = "".join([choice(rng, self.inputs[4:]) for _ in range(length)])
                text += f"<{tag}>"
                target += " " * (length + 1) + "<"
                stack.append(tag)
            else:
                tag = stack.pop()
                text += f"</{tag}>"
                target += f" {tag}><"
            if not stack and rng.rand() > 0.2:
                return text, target


class VariableAssignmentTask(CharacterTask):
    """Store values under keys, and tell one of them: `S(cab,d),S(ff,a),Q(cab)d.` (Danihelka et al. 2016)."""

    inputs = outputs = " ,.SQ()abcdefgh"

    def texts(self, rng: np.random.RandomState) -> tuple[str, str]:
        letters = self.inputs[7:]
        store: dict[str, str] = {}
        for _ in range(rng.randint(1, 5)):
            length = rng.randint(2, 5)
            key = ""
            while not key or key in store:
                key = "".join([choice(rng, letters) for _ in range(length)])
            store[key] = "".join([choice(rng, letters) for _ in range(rng.randint(1, 2))])
        assignments = ",".join(f"S({key},{value})" for key, value in store.items())
        key = choice(rng, list(store))
        text = f"{assignments},Q({key}){store[key]}."
        return text, " " * (len(assignments) + 3 + len(key)) + store[key] + ". "


class NumberBaseTask(GeneratingDataset):
    """A number in one base (stream `data`, digits), to be written in another one (stream `classes`)."""

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        input_base: int = 8,
        output_base: int = 2,
        min_input_seq_len: int = 1,
        max_input_seq_len: int = 8,
        seed: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int = 1,
    ) -> None:
        super().__init__(
            num_seqs,
            seed=seed,
            fixed_random_seed=fixed_random_seed,
            random_seed_offset=random_seed_offset,
            partition_epoch=partition_epoch,
        )
        for name, base in (("input_base", input_base), ("output_base", output_base)):
            if not 2 <= base <= len(DIGITS):
                raise ValueError(f"{name}={base}: expected 2 to {len(DIGITS)}")
        if not 0 < min_input_seq_len <= max_input_seq_len:
            raise ValueError(f"min_input_seq_len={min_input_seq_len}: expected 1 to {max_input_seq_len} (the longest)")
        self.input_base = input_base
        self.output_base = output_base
        self.input_lengths = (min_input_seq_len, max_input_seq_len)
        self.streams = {
            "data": TensorSpec(dim=input_base, sparse=True),
            "classes": TensorSpec(dim=output_base, sparse=True),
        }
        self.labels = {"data": DIGITS[:input_base], "classes": DIGITS[:output_base]}

    def generate(self, rng: np.random.RandomState, index: int) -> dict[str, np.ndarray]:
        shortest, longest = self.input_lengths
        length = rng.randint(shortest, longest + 1)
        digits = [rng.randint(0, self.input_base) for _ in range(length)]
        number = 0
        for digit in digits:
            number = number * self.input_base + digit
        target = [number % self.output_base]
        while number := number // self.output_base:
            target.append(number % self.output_base)
        return {"data": np.array(digits, np.int32), "classes": np.array(target[::-1], np.int32)}


class CopyTask(GeneratingDataset):
    """Random symbols, the same in both streams; the lengths may grow with the epochs.

    The lengths are from minlen + minlen_epoch_factor * epoch to maxlen + maxlen_epoch_factor * epoch.
    """

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        nsymbols: int,
        minlen: int = 0,
        maxlen: int = 0,
        minlen_epoch_factor: float = 0,
        maxlen_epoch_factor: float = 0,
        seed: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int | None = None,
        partition_epoch: int = 1,
    ) -> None:
        super().__init__(
            num_seqs,
            seed=seed,
            fixed_random_seed=fixed_random_seed,
            random_seed_offset=random_seed_offset,
            partition_epoch=partition_epoch,
        )
        if nsymbols < 1:
            raise ValueError(f"nsymbols={nsymbols}: expected a number from 1")
        self.nsymbols = nsymbols
        self.shortest = (minlen, minlen_epoch_factor)
        self.longest = (maxlen, maxlen_epoch_factor)
        self.streams = {
            "data": TensorSpec(dim=nsymbols, sparse=True),
            "classes": TensorSpec(dim=nsymbols, sparse=True, same_length_as="data"),
        }
        self.labels = {}

    def generate(self, rng: np.random.RandomState, index: int) -> dict[str, np.ndarray]:
        shortest, longest = (int(start + factor * self.epoch) for start, factor in (self.shortest, self.longest))
        if not 0 < shortest <= longest:
            raise ValueError(f"epoch {self.epoch}: lengths from {shortest} to {longest}; expected from 1, and in order")
        symbols = [rng.randint(0, self.nsymbols) for _ in range(rng.randint(shortest, longest + 1))]
        array = np.array(symbols, np.int32)
        return {"data": array, "classes": array}


class DummyDataset(GeneratingDataset):
    """Numbers that count up, without meaning: for trying out whether a model runs."""

    def __init__(
        self,
        num_seqs: int = 1000,
        *,
        input_dim: int,
        output_dim: int,
        seq_len: int | Mapping[str, int] = 2,
        input_max_value: float = 10.0,
        input_shift: float | None = None,
        input_scale: float | None = None,
    ) -> None:
        """
        Args:
            seq_len: of both streams, or {"data": ..., "classes": ...}.
            input_max_value, input_shift, input_scale: a value is (count % input_max_value + input_shift) * input_scale.
        """
        super().__init__(num_seqs)
        self.input_dim = input_dim
        self.output_dim = output_dim
        lens = seq_len if isinstance(seq_len, Mapping) else {"data": seq_len, "classes": seq_len}
        self.num_frames = (lens["data"], lens["classes"])
        self.input_max_value = input_max_value
        self.input_shift = -input_max_value / 2 if input_shift is None else input_shift
        self.input_scale = 1 / input_max_value if input_scale is None else input_scale
        self.streams = {"data": TensorSpec(dim=input_dim), "classes": TensorSpec(dim=output_dim, sparse=True)}
        self.labels = {}

    def generate(self, rng: np.random.RandomState, index: int) -> dict[str, np.ndarray]:
        data_len, classes_len = self.num_frames
        end = index + data_len * self.input_dim
        values = (np.arange(index, end) % self.input_max_value + self.input_shift) * self.input_scale
        return {
            "data": values.reshape(data_len, self.input_dim).astype(np.float32),
            "classes": (np.arange(end, end + classes_len) % self.output_dim).astype(np.int32),
        }
