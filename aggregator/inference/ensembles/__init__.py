"""Ensembles: models of the protocol that ask other models, at once, and let their outputs meet.

kept_ensembles.py    those that are deployed, on the disk
ensemble_models.py   they are a source of models of the data plane
asking_members.py    one request: members asked at once, those that do not answer in time are absent
ensemble_tensors.py  an ensemble's inputs and outputs, from its members'
service.py           what clients call
"""
