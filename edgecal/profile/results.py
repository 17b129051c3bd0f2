"""What a run found, as data: what `--json` writes and every other form of output is made from.

Only what was measured is kept (seconds, bytes, counts); rates, percentiles and shares are computed from it, so that
they cannot contradict it. `to_dict` adds the computed ones under "summary" for programs in other languages, and
`from_dict` ignores them there. The file says which schema and version it has; another version is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecal_weights.files import read_json

from ..errors import FileFormatError
from .roofline import Point, Read
from .schema import decode, encode
from .split import Split
from .statistics import Summary, median, summarize

SCHEMA, VERSION = "edgecal-profile", 2
LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class ModelFacts:
    """The base. `read_bytes` are the bytes of weights that a step reads: all but an untied embedding, of which it
    reads a row. `operations` count a multiplication and an addition as two, for a token in an empty context;
    `position_*` is what each position of context adds."""

    source: str
    family: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    context: int
    formats: dict[str, int]  # number format -> bytes of weights in it
    weight_bytes: int
    read_bytes: int
    operations: int
    position_bytes: int
    position_operations: int
    cache_dtype: str
    backend: str


@dataclass(frozen=True)
class Memory:
    """Resident bytes while one method read and wrote at the longest context; the four parts sum to `peak`."""

    context: int
    peak: int
    weights: int
    adapters: int
    kv_cache: int
    peak_is_exact: bool  # False: the system cannot start a new peak, so it is the largest since the process began

    @property
    def rest(self) -> int:
        """Interpreter, libraries, compiled code, tokenizer, buffers."""
        return self.peak - self.weights - self.adapters - self.kv_cache


@dataclass
class PromptCase:
    """A prompt read behind `depth` tokens; one value per repeat, in seconds.

    `read_s` is the reading alone (of all passes), `first_token_s` until the first token of the answer is chosen.
    """

    threads: int
    prompt: int
    depth: int
    tokens_read: int  # of all passes
    read_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    split: Split = field(default_factory=Split)

    @property
    def label(self) -> str:
        return f"read {self.prompt}" + (f" @ {self.depth}" if self.depth else "")

    @property
    def rate(self) -> float:
        """Prompt tokens per second, by the median repeat."""
        return self.tokens_read / median(self.read_s) if self.read_s else 0.0


@dataclass
class DecodeCase:
    """`new` tokens written behind `depth` tokens. `runs`: seconds per token, a list per repeat; `write_s`: each whole
    repeat by a clock around it. `clock_cost`: a token's time with the kernels' clock by the same token's without.
    """

    threads: int
    new: int
    depth: int
    runs: list[list[float]] = field(default_factory=list)
    write_s: list[float] = field(default_factory=list)
    split: Split = field(default_factory=Split)
    clock_cost: float | None = None

    @property
    def label(self) -> str:
        return f"write {self.new}" + (f" @ {self.depth}" if self.depth else "")

    @property
    def rate(self) -> float:
        """Tokens per second, by the median repeat."""
        return self.new / median(self.write_s) if self.write_s else 0.0

    @property
    def latency(self) -> Summary | None:
        return summarize(self.runs)


@dataclass
class MethodResult:
    """One recipe. `adapter_parameters` are those of the adapters that it uses, which are there without it as well;
    `extra_*` those of its calibration; `adapter_bytes` what the compiled pairs take at run time (the last pass's)."""

    name: str
    method: str
    recipe: dict[str, Any]
    n_passes: int
    rank: int
    adapter_parameters: int
    adapter_bytes: int
    adapter_operations: int
    extra_parameters: int
    extra_bytes: int
    compile_s: list[float] = field(default_factory=list)
    memory: Memory | None = None
    prompts: list[PromptCase] = field(default_factory=list)
    decodes: list[DecodeCase] = field(default_factory=list)

    def prompt_case(self, threads: int, prompt: int, depth: int, tokens_read: int) -> PromptCase:
        """The case of these lengths, made when it is not there."""
        for case in self.prompts:
            if (case.threads, case.prompt, case.depth) == (threads, prompt, depth):
                return case
        self.prompts.append(PromptCase(threads, prompt, depth, tokens_read))
        return self.prompts[-1]

    def decode_case(self, threads: int, new: int, depth: int) -> DecodeCase:
        """As `prompt_case`."""
        for case in self.decodes:
            if (case.threads, case.new, case.depth) == (threads, new, depth):
                return case
        self.decodes.append(DecodeCase(threads, new, depth))
        return self.decodes[-1]

    def point(self, model: ModelFacts, case: DecodeCase, reads: list[Read]) -> Point | None:
        """Where a step of this case lies under the roof; None before anything was measured.

        The context counts with the mean of what the steps attended to.
        """
        latency = case.latency
        if latency is None:
            return None
        context = case.depth + (case.new + 1) / 2
        roof = median([r.rate for r in reads if r.threads == case.threads])
        return Point(
            step_s=latency.p50,
            weight_bytes=model.read_bytes,
            bytes=model.read_bytes + self.adapter_bytes + context * model.position_bytes,
            operations=model.operations + self.adapter_operations + context * model.position_operations,
            bandwidth=None if roof != roof else roof,
        )


@dataclass
class ProfileReport:
    """One run of `edgecal profile`. `notes` say what a reader has to know before believing a figure."""

    model: ModelFacts
    machine: dict[str, Any]
    settings: dict[str, Any]
    load_s: float
    kernels_s: float | None  # compiling the kernels; None: they were on disk
    idle_bytes: int
    idle_weights: int
    methods: list[MethodResult] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    peak_operations: dict[str, float] = field(default_factory=dict)  # threads -> operations/s of a product in cache
    disturbance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    when: str = ""
    version: str = ""
    interrupted: bool = False

    def bandwidth(self, threads: int) -> float | None:
        """Bytes per second of a plain read by this number of threads."""
        rates = [read.rate for read in self.reads if read.threads == threads]
        return median(rates) if rates else None

    @property
    def clock_cost(self) -> float | None:
        """What the split's clock adds to a token, as a share: the median over all cases."""
        costs = [c.clock_cost for m in self.methods for c in m.decodes if c.clock_cost is not None]
        return median(costs) - 1 if costs else None

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "schema_version": VERSION, **encode(self), "summary": self._summary()}

    @classmethod
    def from_dict(cls, values: Any, source: str = "the profile") -> ProfileReport:
        """FileFormatError for another schema or version, or a value of the wrong kind; it names the place."""
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise FileFormatError(
                f'{source} is no profile: expected an object with "schema": "{SCHEMA}", as `edgecal profile --json` '
                "writes it"
            )
        version = values.get("schema_version")
        if version != VERSION:
            raise FileFormatError(
                f"{source} has version {version!r} of the profile's schema, this edgecal reads version {VERSION}: "
                "measure again, or use the edgecal that wrote it"
            )
        own = {key: item for key, item in values.items() if key not in ("schema", "schema_version", "summary")}
        report = decode(cls, own, source, "profile")
        for method in report.methods:
            for read in method.prompts:
                _check_times(source, read.label, read.read_s)
            for case in method.decodes:
                lengths = {len(run) for run in case.runs}
                if len(lengths) > 1 or 0 in lengths or len(case.runs) != len(case.write_s):
                    raise FileFormatError(f"{source}: {case.label} has repeats of different lengths")
                _check_times(source, case.label, case.write_s + [sum(run) for run in case.runs])
        return report

    def _summary(self) -> list[dict[str, Any]]:
        rows = []
        for method in self.methods:
            for prompt in method.prompts:
                rows.append(
                    {
                        "method": method.name,
                        "case": prompt.label,
                        "threads": prompt.threads,
                        "prefill_tokens_per_s": prompt.rate,
                        "first_token_s": median(prompt.first_token_s) if prompt.first_token_s else None,
                    }
                )
            for case in method.decodes:
                latency, point = case.latency, method.point(self.model, case, self.reads)
                row: dict[str, Any] = {"method": method.name, "case": case.label, "threads": case.threads}
                row["decode_tokens_per_s"] = case.rate
                row["latency_s"] = latency.to_dict() if latency else None
                row["roofline"] = point.to_dict() if point else None
                rows.append(row)
        return rows


def _check_times(source: str, label: str, seconds: list[float]) -> None:
    if not all(second > 0 for second in seconds):
        raise FileFormatError(f"{source}: {label} took no time, which nothing does")


def load(path: str | Path) -> ProfileReport:
    """Read a profile; FileFormatError names the file."""
    return ProfileReport.from_dict(read_json(path, LARGEST_FILE, error=FileFormatError), str(path))
