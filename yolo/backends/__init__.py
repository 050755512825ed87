# SPDX-License-Identifier: Apache-2.0
"""What can run a network: one file a runtime."""
