"""What images are trained with beside their class: texts and visual targets, computed once.

`attach` writes `conditions.safetensors` beside a subset, in the format of
`gadc.training.conditions`; `research_files` exchanges both with the published research code.
"""
