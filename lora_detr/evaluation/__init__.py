"""From predictions to detections, and from detections to COCO's numbers."""
