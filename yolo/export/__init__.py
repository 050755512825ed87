# SPDX-License-Identifier: Apache-2.0
"""Write a model for other runtimes, and prove that the file computes what the model does."""
