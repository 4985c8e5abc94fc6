"""``fgrpo export``: from a checkpoint of verl to a folder that transformers, vLLM and PEFT load."""
