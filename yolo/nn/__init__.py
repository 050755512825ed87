# SPDX-License-Identifier: Apache-2.0
"""Networks, boxes, assigners and losses, on plain numbers and tensors."""
