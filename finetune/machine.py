"""Paddle's environment on this machine: all cores, no noise. Must run before Paddle is imported."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings

from bundle.machine import cores, is_amd


def quiet_paddle() -> None:
    """Sets what Paddle reads at import: its threads (1 by default) and, on AMD, the fast path of its MKL.

    Paddle's bundled MKL takes a slow path on AMD processors unless told otherwise: 44 against 149 GFLOP/s measured.
    Values that the user has set are kept.
    """
    if "paddle" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
        os.environ.setdefault("FLAGS_paddle_num_threads", os.environ["OMP_NUM_THREADS"])
        os.environ.setdefault("GLOG_minloglevel", "2")
        if is_amd():
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    # Its imports warn about ccache, distutils, pkg_resources, and about the very thread setting that is wanted.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import paddle  # noqa: F401
        import paddlenlp  # noqa: F401
        from paddlenlp.utils.log import logger
    logger.set_level("ERROR")
    logging.getLogger("visualdl").setLevel(logging.ERROR)
