# SPDX-License-Identifier: Apache-2.0
"""`python -m yolo` is the `yolo` command."""

from __future__ import annotations

import sys

from yolo.cli import main

if __name__ == "__main__":
    sys.exit(main())
