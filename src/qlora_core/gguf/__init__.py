"""GGUF, the file format of llama.cpp, Ollama and LM Studio: models and LoRA adapters, written and read back.

`families` says what each family is called and how it differs, `tokenizer` how texts become ids there, `blocks` how
numbers are stored; `model` and `adapters` write files, `reading` reads them, and `llama_cpp` asks llama.cpp itself
what it makes of one. Knows files and numbers; nothing of runs or of MLX. The format is described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""
