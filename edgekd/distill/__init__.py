"""Distillation: objectives that compare a student with its teacher, and the stage that trains with one of them."""
