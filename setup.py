"""Build the C++ passes where torch and a compiler are at hand; the package is pure Python elsewhere.

An isolated build, plain `pip install .`, has no torch; `pip install --no-build-isolation .` has the environment's.
"""

import os
import sys
import warnings
from pathlib import Path

from setuptools import setup

SOURCES = Path("src/whatwhere/ops/csrc")


def options():
    """Return what `setup` needs to build the passes; nothing where they cannot be built."""
    if not sys.platform.startswith("linux"):
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}

    class Build(BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:  # no compiler, an old one, or other headers: the package works without
                # who needs the passes asks for the error: `make wheel`
                if os.environ.get("WHATWHERE_CPP") == "1":
                    raise
                warnings.warn(f"the C++ passes are left out: {error}", stacklevel=1)
                self.extensions = []

    passes = CppExtension(
        "whatwhere.ops._passes",
        sorted(map(str, SOURCES.glob("*.cpp"))),
        depends=sorted(map(str, [*SOURCES.glob("*.h"), *SOURCES.glob("*.inl")])),
        py_limited_api=True,
        # torch's stable ABI of 2.10: one library for this and later versions of torch, and for every Python
        define_macros=[("TORCH_STABLE_ONLY", None), ("TORCH_TARGET_VERSION", "0x020a000000000000")],
        extra_compile_args=["-O3", "-std=c++20", "-fvisibility=hidden", "-g0"],
    )
    return {
        "ext_modules": [passes],
        "cmdclass": {"build_ext": Build.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**options())
