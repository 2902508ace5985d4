"""Official ``.pth`` files: which system they hold, their keys and classes."""
