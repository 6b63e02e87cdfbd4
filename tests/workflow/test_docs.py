"""The documentation does what it says: its commands run, its names and links exist.

Blocks of shell and Python commands are run page by page, in order, in a folder that looks like a
fresh checkout; a block of text is what they print. A comment above a block says
why it is not run: it ``needs GPUs``, ``needs a network`` or ``needs Slurm``, or takes ``minutes``.
Of such a block every command of ours is parsed instead: those of Snakemake by a dry run, those of
make by ``make --dry-run``, those of ``pusa`` by its command line.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import pytest
import torch
import typer

from pusa import cli
from pusa.config import Config, read_config_files
from pusa.layout import read_layout
from pusa.models.folder import digest_weights
from pusa.models.lora import LoraInfo, save_lora
from pusa.report.plan import describe_plan
from pusa.settings import section_of
from pusa.train.engine import TARGETS
from tests.mini import ROOT, activated

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what was, too
#: What the pages' commands read of a checkout.
CHECKOUT = ("pusa", "workflow", "slurm", "envs", "benchmarks", "Makefile")
COPIED = ("config", "docs", "pyproject.toml")  # commands may write there
REASONS = {"needs GPUs", "needs a network", "needs Slurm", "minutes"}
#: Programs of others in blocks that are not run; what follows is not looked at.
OTHERS = {".", "apptainer", "docker", "export", "pip", "python", "python3", "sacct", "squeue"}
OTHERS |= {"tail", "tensorboard"}
BLOCK = re.compile(
    r"(?:^<!-- (?P<reason>[^>]*) -->\n+)?^```(?P<kind>sh|python|text)\n(?P<code>.*?)^```",
    re.M | re.S,
)
#: A LoRA that `make demo` leaves, as the pages name it.
DEMO_LORA = "results/demo/trained/pusa-rank64-seed0/iteration_120.safetensors"


#: Takes the place of the program ``pusa`` in a page's shell: its calls are forked off a process
#: that has imported everything, as importing takes longer than what most of them do.
PUSA = """
coproc SERVER { python -c '
import os, shlex, sys
import pusa.cli, pusa.figures.strips, pusa.sample.generate
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = ["pusa", *shlex.split(line)]
        os.dup2(2, 1)
        pusa.cli.main()
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'; }
pusa() {
  echo "${@@Q}" >&"${SERVER[1]}"
  read -r status <&"${SERVER[0]}"
  return "$status"
}
"""


@dataclass(frozen=True)
class Block:
    """Commands of a page."""

    page: str
    line: int
    kind: str  # sh, python, or text, which they print
    code: str
    reason: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks() -> list[Block]:
    return [
        Block(
            page=page.relative_to(ROOT).as_posix(),
            line=page.read_text()[: found.start("code")].count("\n") + 1,
            kind=found["kind"],
            code=found["code"],
            reason=found["reason"],
        )
        for page in PAGES
        for found in BLOCK.finditer(page.read_text())
    ]


BLOCKS = read_blocks()
LADDER = ROOT / "docs/reproduce.md"
RUN = [block for block in BLOCKS if block.reason is None]


def read_commands(code: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments; ``a && b`` is two."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    return commands


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A function that makes a folder like a fresh checkout in which `make demo` trained a LoRA."""
    tensors = _random_lora(ROOT / "pusa/tiny/model/transformer")

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for part in CHECKOUT:
            (folder / part).symlink_to(ROOT / part)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        info = LoraInfo(
            rank=1,
            lora_alpha=1,
            targets=TARGETS,
            base=digest_weights(ROOT / "pusa/tiny/model/transformer"),
            iteration=120,
            p_async=1.0,
            vectorized=True,
        )
        save_lora(folder / DEMO_LORA, tensors, info)
        return folder

    return make


def _random_lora(transformer: Path) -> dict[str, torch.Tensor]:
    """A LoRA of rank 1 on every target of a transformer, weak enough to do no harm."""
    from pusa.models.load import load_transformer

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in load_transformer(transformer).named_modules():
        if name.startswith("blocks.") and name.endswith(TARGETS):
            rows, columns = module.weight.shape
            tensors[f"{name}.lora_A.weight"] = torch.randn(1, columns, generator=generator) / 100
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 1, generator=generator) / 100
    return tensors


def test_pages_have_commands():
    """As many blocks as there are fences: none is missed for how it is written."""
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.M)) for page in PAGES)
    assert len(BLOCKS) == fences >= 20
    assert len(RUN) >= 8


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.reason], ids=str)
def test_reason_is_known(block):
    assert set(block.reason.split(", ")) <= REASONS


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_commands(page, checkout):
    """All that is run goes through one shell, as with someone who follows the page."""
    folder = checkout(Path(page).stem)
    blocks = [block for block in BLOCKS if block.page == page]
    printed = run_blocks(blocks, folder)
    for block in blocks:
        if block.kind == "text":
            for line in block.code.splitlines():
                assert line.strip() in printed, f"{block}: {line.strip()}\nnot in\n{printed}"
        elif block.reason:
            assert block.kind == "sh", f"{block}: Python that is not run"
            for words in read_commands(block.code):
                check_command(words, folder)


def run_blocks(blocks: list[Block], folder: Path) -> str:
    """Run those of the blocks that are to be run, as one shell script; what it prints."""
    commands = [
        block.code if block.kind == "sh" else f"python - <<'PYTHON'\n{block.code}PYTHON\n"
        for block in blocks
        if block.kind != "text" and block.reason is None
    ]
    script = "\n".join(commands)
    script = PUSA + script if "pusa " in script else script
    return run(["bash", "-euxo", "pipefail", "-c", script], folder)


def check_command(words: list[str], folder: Path) -> None:
    """Fail unless a command of ours, or one that another starts, can be understood."""
    match words:
        case ["snakemake", *rest]:
            if "--report" in rest:  # it needs results, and has no dry run
                rest = rest[: rest.index("--report")] + rest[rest.index("--report") + 2 :]
            run(["snakemake", *rest, "--dry-run", "--quiet"], folder)
        case ["make", *rest]:
            run(["make", "--dry-run", *rest], folder)
        case ["pusa", *rest] | ["python", "-m", "pusa", *rest]:
            parse_pusa(rest)
        case ["torchrun", *rest] if "pusa" in rest:
            parse_pusa(rest[rest.index("pusa") + 1 :])
        case ["sbatch", *_, wrapped]:
            check_command(shlex.split(wrapped), folder)
        case [program, *_]:
            assert program in OTHERS, shlex.join(words)


def run(words: list[str], folder: Path) -> str:
    """Run a command in a folder, without fail; what it prints."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=activated(dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}"
    return done.stdout


def parse_pusa(words: list[str]) -> None:
    """Parse a command line as ``pusa`` does; an error says what it does not know."""
    command, context, rest = find_command(words)
    command.make_context(command.name, rest, parent=context)


def find_command(words: list[str]):
    """A command of ``pusa``, the context of its group, and the words that are left for it."""
    command, context = typer.main.get_command(cli.app), None
    while isinstance(command, typer.core.TyperGroup):
        context = command.make_context(command.name, list(words), parent=context)
        words = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, words)
    return command, context, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("merge --base a --lora b --factor 1 --out c", "No such option: --factor"),
        ("merge --base a --lora b --out c", "Missing option '--lora-scale'"),
        ("merges", "No such command"),
        ("tiny psnr a --clips many", "a valid integer"),
    ],
)
def test_a_wrong_command_is_seen(words, message):
    with pytest.raises(typer.BadParameter.__base__) as error:
        parse_pusa(words.split())
    assert message in error.value.format_message()


@pytest.mark.slow
@pytest.mark.parametrize("code", ["pusa tiny psnr nowhere\ntrue\n", "no-such-program; true\n"])
def test_a_failing_block_is_seen(code, checkout):
    block = Block(page="page.md", line=1, kind="sh", code=code, reason=None)
    with pytest.raises(AssertionError, match=r"nowhere does not exist|command not found"):
        run_blocks([block], checkout("failing"))


@pytest.mark.parametrize("words", ["snakemake --cores 2 --no-such", "make no-such-target"])
def test_a_wrong_call_is_seen(words, checkout):
    with pytest.raises(AssertionError):
        check_command(words.split(), checkout("wrong"))


def links() -> list:
    """Every link and picture within the repository."""
    return [
        pytest.param(page, target, id=f"{page.name}->{target}")
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in target
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), f"{page.name} links to {target}"
    if anchor:
        assert anchor in anchors(file.read_text())


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_code_exist(page):
    """`pusa/flow.py: interpolate`, `tests/method/test_flow.py`, and names within names."""
    for path, name in re.findall(
        r"`((?:pusa|tests|workflow|config|benchmarks)/[\w./-]+)(?:: ([\w.]+))?`", page.read_text()
    ):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
        if name:
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            reduce(getattr, name.split("."), module)


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_configuration_keys_exist(page):
    """`train.offload` and the like, and no key that the configuration lacks."""
    for section, key in re.findall(r"`([a-z]+)\.([a-z_0-9]+)[`:]", page.read_text()):
        if section in Config.model_fields and key not in ("py", "md", "csv"):
            kind = section_of(Config.model_fields[section])
            assert key in kind.model_fields, f"{section}.{key}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page):
    """`pusa claims --train-seed` in a sentence: that command has that option."""
    for words in re.findall(r"`pusa ([a-z][^`]*)`", page.read_text()):
        command, _, rest = find_command(shlex.split(words))
        known = {option for parameter in command.params for option in parameter.opts}
        assert known >= {word for word in rest if word.startswith("-")}, f"pusa {words}"


def test_prices_of_the_ladder():
    """What a dry run of the rung's own command says."""
    rungs = re.findall(r"^\| \d \| `(snakemake[^`]*)` \| ([^|]*) \|", LADDER.read_text(), re.M)
    assert len(rungs) == 4
    for command, costs in rungs:
        files = re.findall(r"config/[\w.]+", command) or ["config/config.yaml"]
        plan = describe_plan(read_layout(read_config_files([ROOT / file for file in files])))
        priced = (line for line in plan.splitlines() if "$" in line)
        (told,) = (ln for ln in priced if ("first_look" in ln) == ("first_look" in command))
        hours, price = costs.split(" GPU-hours, ")
        assert f"about {hours} GPU-hours, {price}" in told, command


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
