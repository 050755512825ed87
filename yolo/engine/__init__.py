# SPDX-License-Identifier: Apache-2.0
"""The training, validation and prediction loops, and what they share."""
