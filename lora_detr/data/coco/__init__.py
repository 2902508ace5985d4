"""COCO annotations: reading, checking and verifying them."""
