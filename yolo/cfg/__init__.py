# SPDX-License-Identifier: Apache-2.0
"""Options, YAML and network descriptions; imports no torch."""
