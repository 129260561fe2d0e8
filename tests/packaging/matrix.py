"""Test each supported release of PEFT and accelerate: `python -m tests.packaging.matrix [peft accelerate]`.

Each release is installed alone into a folder of build/, which comes first on the path of the process that runs the
tests. Everything else is what this interpreter has.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELEASES = {
    "peft": ("0.21.0", "0.21.1", "0.21.2"),
    "accelerate": ("1.12.0", "1.13.0", "1.14.0", "1.15.0"),
}
TESTS = {
    "peft": ("tests/peft", "tests/torch/test_peft_folder.py", "tests/parity/test_peft_files.py"),
    "accelerate": (
        "tests/peft/test_trainer.py",
        "tests/peft/test_checkpoints.py",
        "tests/peft/test_policies.py",
        "tests/peft/test_chains.py",
        "tests/torch/seam/test_changed_host.py",
        "tests/torch/seam/test_fronts.py",
        "tests/torch/parallel/test_offload.py",
        "tests/torch/test_distributed.py",
    ),
}


def install(package: str, release: str) -> Path:
    """Install one release, without what it needs, into a folder of its own, once; return the folder."""
    folder = ROOT / "build" / "matrix" / f"{package}-{release}"
    words = ["install", "-q", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target", str(folder)]
    if not (folder / package / "__init__.py").exists():
        subprocess.run([sys.executable, "-m", "pip", *words, f"{package}=={release}"], check=True)
    return folder


def passes(package: str, release: str) -> bool:
    """Run the tests of a package with one release of it, and return whether all pass."""
    path = os.pathsep.join([str(install(package, release)), str(ROOT)])
    probe = f"from importlib.metadata import version; print(version({package!r}))"
    environment = os.environ | {"PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", probe], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    if found != release:
        raise RuntimeError(f"expected {package} {release} to be imported, got {found}")
    words = ["-q", "-p", "no:cacheprovider", *TESTS[package]]
    return (
        subprocess.run([sys.executable, "-m", "pytest", *words], env=environment, cwd=ROOT, check=False).returncode == 0
    )


def main() -> int:
    """Test the releases of the packages that are named, or of both, and print one line for each."""
    lines = []
    for package in sys.argv[1:] or RELEASES:
        for release in RELEASES[package]:
            print(f"== {package} {release}", flush=True)
            lines.append((f"{package} {release}", passes(package, release)))
    for name, is_right in lines:
        print(f"{name:<20}{'passes' if is_right else 'FAILS'}")
    return 0 if all(is_right for _, is_right in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
