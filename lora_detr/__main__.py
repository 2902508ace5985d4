"""``python -m lora_detr``: the command line, as a launcher of several processes starts it."""

from lora_detr.cli import main

if __name__ == "__main__":
    main()
