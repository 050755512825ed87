# SPDX-License-Identifier: Apache-2.0
"""Measurements that a user can repeat; each prints a table and says on what machine."""
