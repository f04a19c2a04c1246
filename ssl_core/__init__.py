"""The method: data, augmentation, encoder, MoCo with losses on intermediate blocks, training loops, metrics.

Needs torch, torchvision, numpy, scikit-learn and Pillow; knows neither Ray nor MLflow. Nothing is imported here, so
that `import ssl_core.config` stays light: name the module you want (`from ssl_core.pretraining import pretrain`).
"""
