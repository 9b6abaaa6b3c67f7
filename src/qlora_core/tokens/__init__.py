"""Text to token ids, ids to batches. Arrays of numpy only; knows nothing of MLX.

`tokenizer` encodes rows with the help of `chat_template` (the text of a row), `conversations` (which turns are trained)
and `boundaries` (where an answer begins); `dataset` does so for many rows in several processes; `batching` and
`shared_prefix` decide which rows are computed together; `report` and `pieces` show the result.
"""
