"""Bad inputs, all generated here: truncated, damaged, mislabelled, enormous or unusual.

case        one input and its expected result
files       writers of image files, valid and invalid
images      images, by kind
texts       texts, by kind
urls        values of `image` that are not the URL of an image

The cases know nothing of the service, nor of the tests that send them.
"""
