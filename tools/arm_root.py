"""Make Pythons that run this package on emulated ARM processors.

Usage: arm_root.py [--output build/arm]

Writes an executable PROCESSOR-RUNTIME, such as neoverse-n1-ai-edge-litert, for each of
`EMULATIONS`: Debian's Python 3.11 for that processor under qemu-user, with this repository and the
runtime's wheels importable. It needs qemu-user-static, and Debian 12 with its apt-get and dpkg, but
neither privileges nor a container. Nothing is done if the output is up to date.
"""

import argparse
import compileall
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PYTHON = "python3.11"  # the newest with tflite-runtime
NEWEST_GLIBC = 36  # of Debian 12: 2.36
LITERT, TFLITE_RUNTIME = "ai-edge-litert", "tflite-runtime"
STAMP = "stamp"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture of Debian, with its names in qemu and in wheels.

    `packages` are installed beside Python; PyPI has no wheels of `missing` packages.
    """

    name: str
    qemu: str
    machine: str
    packages: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def platforms(self) -> list[str]:
        """The platforms of the wheels that Debian 12 can load."""
        versions = [f"2_{minor}" for minor in range(17, NEWEST_GLIBC + 1)]
        return [f"manylinux{v}_{self.machine}" for v in ("2014", *(f"_{v}" for v in versions))]


ARM64 = Architecture("arm64", "qemu-aarch64-static", "aarch64")
ARMHF = Architecture(
    "armhf", "qemu-arm-static", "armv7l", ("python3-numpy",), ("numpy", "ai-edge-litert")
)


@dataclasses.dataclass(frozen=True)
class Processor:
    """A processor that qemu emulates, and its description in /proc/cpuinfo."""

    name: str
    architecture: Architecture
    part: str
    features: str

    @property
    def cpuinfo(self) -> str:
        """The content of /proc/cpuinfo with two cores."""
        lines = f"Features\t: {self.features}\nCPU implementer\t: 0x41\n"
        lines += f"CPU architecture: {8 if self.architecture is ARM64 else 7}\n"
        lines += f"CPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 1\n\n"
        return "".join(f"processor\t: {number}\n{lines}" for number in range(2))


BASELINE = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEOVERSE_N1 = Processor(
    "neoverse-n1", ARM64, "0xd0c", f"{BASELINE} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
)
CORTEX_A72 = Processor("cortex-a72", ARM64, "0xd08", BASELINE)  # as in a Raspberry Pi 4
CORTEX_A15 = Processor(
    "cortex-a15", ARMHF, "0xc0f", "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt"
)
EMULATIONS = (
    (NEOVERSE_N1, LITERT),
    (CORTEX_A72, LITERT),
    (NEOVERSE_N1, TFLITE_RUNTIME),
    (CORTEX_A15, TFLITE_RUNTIME),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "arm")
    output = parser.parse_args().output.absolute()
    inputs = Path(__file__).read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    stamp = hashlib.sha256(inputs).hexdigest()
    if (output / STAMP).is_file() and (output / STAMP).read_text() == stamp:
        print(f"{output} is up to date")
        return
    require_programs()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as directory:
        draft = Path(directory) / "arm"
        draft.mkdir()
        for architecture in (ARM64, ARMHF):
            install_debian(architecture, draft)
        for processor, runtime in EMULATIONS:
            install_wheels(processor.architecture, runtime, draft)
            write_root(processor, draft)
            write_program(processor, runtime, draft)
        (draft / STAMP).write_text(stamp)
        shutil.rmtree(output, ignore_errors=True)
        draft.rename(output)


def require_programs() -> None:
    """Exit with a message if a program is missing."""
    packages = dict.fromkeys((ARM64.qemu, ARMHF.qemu), "qemu-user-static")
    for program, package in {**packages, "apt-get": "apt", "dpkg": "dpkg"}.items():
        if shutil.which(program) is None:
            sys.exit(f"Emulating ARM needs {program}, from Debian's package {package}.")


def run(what: str, *command: str | Path) -> None:
    """Run a command, or exit with a message and its last line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        last = (done.stdout.strip() or str(command[0])).splitlines()[-1]
        sys.exit(f"Emulating ARM failed: cannot {what}: {last}")


def install_debian(architecture: Architecture, draft: Path) -> None:
    """Unpack Debian's Python for an architecture, with what it depends on, into a directory.

    apt gets directories of its own, so that it needs no privileges and changes nothing else.
    """
    name = architecture.name
    print(f"Fetching Debian's {PYTHON} for {name} ...")
    apt = draft / f"{name}-apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "state/status").touch()  # nothing is installed
    options = {
        "APT::Architecture": name,
        "APT::Architectures": name,
        "APT::Sandbox::User": "",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "state/status",
        "Dir::Cache": apt / "cache",
        "Debug::NoLocking": "true",
        "Acquire::Retries": "3",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    # An index that cannot be read may not be needed.
    subprocess.run(["apt-get", *flags, "update"], capture_output=True)
    wanted = (PYTHON, "libstdc++6", *architecture.packages)
    download = ("install", "--yes", "--download-only", "--no-install-recommends")
    run(f"fetch {PYTHON} for {name}", "apt-get", *flags, *download, *wanted)
    for package in (apt / "cache/archives").glob("*.deb"):
        run(f"unpack {package.name}", "dpkg", "-x", package, draft / name)
    shutil.rmtree(apt)
    # The links that NumPy's libraries get when they are configured.
    for library in (draft / name).glob("usr/lib/*/*/lib*.so.3"):
        (library.parents[1] / library.name).symlink_to(f"{library.parent.name}/{library.name}")
    if sys.version_info[:2] == (3, 11):  # several times as fast as under emulation
        compileall.compile_dir(draft / name / "usr/lib" / PYTHON, quiet=2)


def requirements(architecture: Architecture, runtime: str) -> list[str]:
    """Return this package's requirements with a runtime, as in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = list(project["dependencies"])
    if runtime == TFLITE_RUNTIME:
        needed = [each for each in needed if not each.startswith(("numpy", LITERT))]
        needed += project["optional-dependencies"]["legacy-runtime"]
    return [each for each in needed if not each.startswith(architecture.missing or "-")]


def install_wheels(architecture: Architecture, runtime: str, draft: Path) -> None:
    """Install this package's requirements with a runtime, unless they are installed."""
    target = draft / wheels(architecture, runtime)
    if target.exists():
        return
    print(f"Fetching {runtime} for {architecture.name} ...")
    platforms = [f"--platform={platform}" for platform in architecture.platforms]
    # Without NumPy's wheel, the requirements of the others cannot be met; click and rich have few.
    deps = ["--no-deps", "pygments", "markdown-it-py", "mdurl"] if architecture.missing else []
    run(
        f"fetch {runtime} for {architecture.name}",
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--target", target, *platforms, "--python-version=3.11", "--only-binary=:all:",
        *deps, *requirements(architecture, runtime),
    )  # fmt: skip


def wheels(architecture: Architecture, runtime: str) -> str:
    """Return the name of the directory with a runtime's wheels."""
    return f"{architecture.name}-{runtime}"


def write_root(processor: Processor, draft: Path) -> None:
    """Make the directory in which qemu looks for files first.

    It has the architecture's files, and a description of the processor: LiteRT crashes if it finds
    the host's /proc/cpuinfo.
    """
    root = draft / processor.name
    if root.exists():
        return
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(processor.cpuinfo)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0-1\n")
    (cpus / "kernel_max").write_text("1\n")
    for folder in (draft / processor.architecture.name).iterdir():
        (root / folder.name).symlink_to(Path("..", processor.architecture.name, folder.name))


def write_program(processor: Processor, runtime: str, draft: Path) -> None:
    """Write the program that runs Python on a processor."""
    program = draft / f"{processor.name}-{runtime}"
    architecture = processor.architecture
    program.write_text(
        "#!/bin/sh\n"
        'here=$(cd "$(dirname "$0")" && pwd)\n'
        f'export PYTHONPATH="$here/{wheels(architecture, runtime)}:{ROOT}"\n'
        f'root="$here/{processor.name}"\n'
        f'exec {architecture.qemu} -cpu {processor.name} -L "$root" "$root/usr/bin/{PYTHON}" "$@"\n'
    )
    os.chmod(program, 0o755)


if __name__ == "__main__":
    main()
