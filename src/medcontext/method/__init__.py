"""The method of the paper, in pure PyTorch, to be read in this order.

``presets``      every choice the method leaves open, as a plain value
``masking``      which patches of the volume are hidden
``hiding``       how they are hidden from the network: as tokens, as voxels, or as both
``tokens``       where the tokens of a network lie in the volume
``teacher``      the moving average of the student
``consistency``  how student and teacher are compared
``schedules``    momentum and weight as pure functions of the step
``batches``      samples with and without a label, outputs of one head or several
``objective``    the three passes and their loss
``pretraining``  masked-image pre-training, for comparison
``diagnostics``  what shows whether it works: context score, gradient shares, collapse

Source: Gani, Naseer, Khan, Khan, "MedContext: Learning Contextual Cues for Efficient Volumetric Medical
Segmentation", MICCAI 2024, arXiv 2402.17725.
"""
