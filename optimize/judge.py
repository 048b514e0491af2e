"""Judges candidate parts against the FP32 ones on labelled examples: what share of the accuracy a choice keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgefuse.runtime.backend import OpenParts
from edgefuse.runtime.backend_onnx import open_session, run_session
from edgefuse.runtime.bundle import HEAD, Bundle, token_tensor
from edgefuse.runtime.evaluate import ALL, Answered, Encoded, retention, right_by_subset
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Floats, Predictor
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

REFERENCE = "fp32"
ENCODER_BATCH = 32


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a part."""

    precision: str  # its name; a part has one candidate of each
    model: bytes  # ONNX
    exact_qdq: bool = False  # judged with Q/DQ as written (TensorRT), not in ONNX Runtime's own INT8 kernels
    note: str = ""  # for the contract


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a choice of candidates keeps of the reference's accuracy."""

    retention: float  # with every sensor that a line has
    interval: tuple[float, float]  # 95 %
    pooled: float  # over every subset of sensors taken together: a subset with few lines alone would fail by noise
    by_subset: dict[str, dict[str, float]]  # "image+text" -> {accuracy, reference, n}

    @property
    def kept(self) -> float:
        """What the gate is held against."""
        return min(self.retention, self.pooled)


@dataclass(frozen=True, slots=True)
class Settled:
    """A choice, and how it came about."""

    choice: dict[str, str]  # part -> precision
    verdict: Verdict
    alone: dict[tuple[str, str], float]  # (part, precision) -> what it keeps with the base's other parts


class Judge:
    """Encodes every distinct value once per candidate; any choice then costs some passes through a head.

    Args:
        bundle: the contract.
        examples: labelled, with labels that the model knows.
    """

    def __init__(self, bundle: Bundle, examples: Sequence[Example]) -> None:
        self._bundle = bundle
        self.modalities = bundle.info.modalities
        self._examples = examples
        preprocessor = Preprocessor(bundle)
        self._samples = {m: Samples(preprocessor, examples, m) for m in self.modalities}
        self._tokens: dict[tuple[str, str], Floats] = {}  # (modality, precision) -> [U, N, D]
        self._heads: dict[str, OpenParts] = {}  # precision -> a backend with this head and nothing else
        self._answered: dict[tuple[str, ...], dict[str, Answered]] = {}  # choice -> subset -> who is right

    def add(self, part: str, candidates: Sequence[Candidate]) -> None:
        """Take the candidates of a part; an encoder runs over all examples now.

        One session is open at a time: that of a large text encoder holds several times its file.
        """
        for candidate in candidates:
            session = open_session(candidate.model, exact_qdq=candidate.exact_qdq)
            if part == HEAD:
                self._heads[candidate.precision] = OpenParts({HEAD: partial(run_session, session)})
                continue
            batches = self._samples[part].batches(ENCODER_BATCH)
            tokens = [session.run([token_tensor(part)], batch)[0] for batch in batches]
            if tokens:
                self._tokens[part, candidate.precision] = np.concatenate(tokens)

    def verdict(self, choice: Mapping[str, str]) -> Verdict:
        """Compare a choice, part -> precision, with the reference.

        Raises:
            GateError: the reference answers nothing right.
        """
        reference, candidate = self._answers(dict.fromkeys(choice, REFERENCE)), self._answers(choice)
        share, interval = retention(reference[ALL].right, candidate[ALL].right)
        complete = [name for name in reference if name != ALL]
        pooled, _ = retention(*(np.concatenate([a[name].right for name in complete]) for a in (reference, candidate)))
        by_subset = {
            name: {
                "accuracy": float(candidate[name].right.mean()),
                "reference": float(reference[name].right.mean()),
                "n": len(reference[name].right),
            }
            for name in complete
        }
        return Verdict(share, interval, pooled, by_subset)

    def settle(self, base: Mapping[str, str], wishes: Mapping[str, Sequence[str]], gate: float) -> Settled:
        """Give each part the first of its wishes that passes the gate alone and together with those of the others.

        Args:
            base: part -> precision, of every part.
            wishes: part -> precisions that are better than the base's, the best first.
            gate: least share of the reference's accuracy.

        Returns:
            The base with as many wishes as possible; it misses the gate where even the base does.
        """
        alone: dict[tuple[str, str], float] = {}
        granted: dict[str, str] = {}
        for part, precisions in wishes.items():
            for precision in precisions:
                alone[part, precision] = self.verdict({**base, part: precision}).kept
                if alone[part, precision] >= gate:
                    granted[part] = precision
                    break
        while (verdict := self.verdict({**base, **granted})).kept < gate and granted:
            del granted[min(granted, key=lambda part: alone[part, granted[part]])]
        return Settled({**base, **granted}, verdict, alone)

    def _answers(self, choice: Mapping[str, str]) -> dict[str, Answered]:
        """Which answers are right: with all sensors that a line has, and per subset that some line has."""
        key = tuple(choice[part] for part in (*self.modalities, HEAD))
        if key not in self._answered:
            rows = {m: self._samples[m].rows for m in self.modalities}
            tokens = {m: self._tokens[m, choice[m]] for m in self.modalities if (m, choice[m]) in self._tokens}
            encoded = Encoded(Predictor(self._bundle, self._heads[choice[HEAD]]), tokens, rows)
            self._answered[key] = right_by_subset(encoded, self._examples)
        return self._answered[key]
