"""What compression costs beside one addition: our operations, their floor and their peers, measured in one process.

``run.py`` puts it together; ``gradwire bench`` prints it. Nothing here is imported by ``import gradwire``.
"""
