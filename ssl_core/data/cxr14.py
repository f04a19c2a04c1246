"""NIH's ChestX-ray14 as distributed (Wang et al. 2017; section 4.2.1): 112,120 chest x-rays of 30,805 patients.

<path>/Data_Entry_2017*.csv, images in images_001/images/ ... images_012/images/ or in images/, and the official
train_val_list.txt and test_list.txt.

Split lists published elsewhere (`dataset.lists`) decide splits and labels. Those of the paper's code hold about a tenth
more positives than the counts that section 4.2.1 prints, in the same proportions, and almost the counts of NIH's table
(81,988 labels, 81,176 of them ... see `listing`'s note for the count at hand).
"""
