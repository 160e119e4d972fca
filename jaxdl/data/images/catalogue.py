"""The image data sets that jaxdl prepares itself, with the published addresses and checksums."""

import pathlib

from jaxdl.data.images import digits
from jaxdl.data.images.cifar import CifarLayout, cifar_set
from jaxdl.data.images.idx import idx_set
from jaxdl.data.images.originals import Arrays, Check, Download, ImageSet
from jaxdl.errors import UserError


def _find_digits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    raise UserError('digits: comes with scikit-learn and needs no files; leave --from out')


def _read_digits(files: dict[str, pathlib.Path]) -> tuple[Arrays, list[Check]]:
    return digits.load(), [Check('digits.csv.gz', True)]  # load() refuses any other content


DIGITS = ImageSet(
    name='digits',
    version='1.0.0',
    title='The 1,797 handwritten digits of 8x8 grey pixels that scikit-learn ships',
    homepage='https://archive.ics.uci.edu/dataset/80',
    shape=(8, 8, 1),
    classes={'label': digits.CLASSES},
    counts={'train': 1_438, 'test': 359},
    downloads=(),
    find=_find_digits,
    read=_read_digits,
    embedded=digits.load,
)

_MNIST_URL = 'https://storage.googleapis.com/cvdf-datasets/mnist/'

MNIST = idx_set(
    name='mnist',
    title='MNIST: handwritten digits of 28x28 grey pixels',
    homepage='http://yann.lecun.com/exdb/mnist/',
    classes={'label': tuple('0123456789')},
    md5s={
        'train-images-idx3-ubyte': '6bbc9ace898e44ae57da46a324031adb',
        'train-labels-idx1-ubyte': 'a25bea736e30d166cdddb491f175f624',
        't10k-images-idx3-ubyte': '2646ac647ad5339dbf082846283269ea',
        't10k-labels-idx1-ubyte': '27ae3e4e09519cfbb04c329615203637',
    },
    downloads=(
        Download(
            _MNIST_URL + 'train-images-idx3-ubyte.gz',
            9912422,
            '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
        ),
        Download(
            _MNIST_URL + 'train-labels-idx1-ubyte.gz',
            28881,
            '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
        ),
        Download(
            _MNIST_URL + 't10k-images-idx3-ubyte.gz',
            1648877,
            '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
        ),
        Download(
            _MNIST_URL + 't10k-labels-idx1-ubyte.gz',
            4542,
            'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
        ),
    ),
)

_FASHION_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'

FASHION_MNIST = idx_set(
    name='fashion_mnist',
    title='Fashion-MNIST: articles of clothing of 28x28 grey pixels',
    homepage='https://github.com/zalandoresearch/fashion-mnist',
    classes={
        'label': (
            'T-shirt/top',
            'Trouser',
            'Pullover',
            'Dress',
            'Coat',
            'Sandal',
            'Shirt',
            'Sneaker',
            'Bag',
            'Ankle boot',
        )
    },
    md5s={
        'train-images-idx3-ubyte': 'f4a8712d7a061bf5bd6d2ca38dc4d50a',
        'train-labels-idx1-ubyte': '9018921c3c673c538a1fc5bad174d6f9',
        't10k-images-idx3-ubyte': '8181f5470baa50b63fa0f6fddb340f0a',
        't10k-labels-idx1-ubyte': '15d484375f8d13e6eb1aabb0c3f46965',
    },
    downloads=(
        Download(
            _FASHION_URL + 'train-images-idx3-ubyte.gz',
            26421880,
            '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
        ),
        Download(
            _FASHION_URL + 'train-labels-idx1-ubyte.gz',
            29515,
            'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
        ),
        Download(
            _FASHION_URL + 't10k-images-idx3-ubyte.gz',
            4422102,
            '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
        ),
        Download(
            _FASHION_URL + 't10k-labels-idx1-ubyte.gz',
            5148,
            '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
        ),
    ),
)

CIFAR10 = cifar_set(
    name='cifar10',
    title='CIFAR-10: colour photographs of 32x32 pixels in 10 classes',
    classes={'label': tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())},
    keys={'label': 'labels'},
    layouts=(
        CifarLayout(
            archive='cifar-10-binary.tar.gz',
            archive_md5='c32a1d4ab5d03f1284b67883e8d87530',
            folder='cifar-10-batches-bin',
            members={
                'train': {
                    'data_batch_1.bin': '5dd7e06a14cb22eb9f671a540d1b7c25',
                    'data_batch_2.bin': '5ea93a67294ea407fff1d09f752e9692',
                    'data_batch_3.bin': '942cd6a4bcdd0dd3c604fbe906cb4421',
                    'data_batch_4.bin': 'ae636b3ba5c66a11e91e8cb52e771fcb',
                    'data_batch_5.bin': '53f37980c15c3d472c316c40844f3f0d',
                },
                'test': {'test_batch.bin': '803d5f7f4d78ea53de84dbe85f74fb6d'},
            },
            pickled=False,
        ),
        CifarLayout(
            archive='cifar-10-python.tar.gz',
            archive_md5='c58f30108f718f92721af3b95e74349a',
            folder='cifar-10-batches-py',
            members={
                'train': {
                    'data_batch_1': 'c99cafc152244af753f735de768cd75f',
                    'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
                    'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
                    'data_batch_4': '634d18415352ddfa80567beed471001a',
                    'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
                },
                'test': {'test_batch': '40351d587109b95175f43aff81a1287e'},
            },
            pickled=True,
        ),
    ),
    downloads=(
        Download(
            'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
            170052171,
            'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
        ),
    ),
)

_COARSE = (
    'aquatic_mammals fish flowers food_containers fruit_and_vegetables '
    'household_electrical_devices household_furniture insects large_carnivores '
    'large_man-made_outdoor_things large_natural_outdoor_scenes '
    'large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles '
    'small_mammals trees vehicles_1 vehicles_2'
)
_FINE = (
    'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus '
    'butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch '
    'crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo '
    'keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse '
    'mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy '
    'porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper '
    'snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television '
    'tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm'
)

CIFAR100 = cifar_set(
    name='cifar100',
    title='CIFAR-100: colour photographs of 32x32 pixels in 100 classes and 20 superclasses',
    classes={'coarse_label': tuple(_COARSE.split()), 'label': tuple(_FINE.split())},
    keys={'coarse_label': 'coarse_labels', 'label': 'fine_labels'},
    layouts=(
        CifarLayout(
            archive='cifar-100-binary.tar.gz',
            archive_md5='03b5dce01913d631647c71ecec9e9cb8',
            folder='cifar-100-binary',
            members={
                'train': {'train.bin': '6172c7755cfe09b2fe270c85cebc1b15'},
                'test': {'test.bin': '4499cfba6c016c1be1438163640a0898'},
            },
            pickled=False,
        ),
        CifarLayout(
            archive='cifar-100-python.tar.gz',
            archive_md5='eb9058c3a382ffc7106e4002c42a8d85',
            folder='cifar-100-python',
            members={
                'train': {'train': '16019d7e3df5f24257cddd939b257f8d'},
                'test': {'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc'},
            },
            pickled=True,
        ),
    ),
    downloads=(
        Download(
            'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
            168513733,
            '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
        ),
    ),
)

IMAGE_SETS = {spec.name: spec for spec in (DIGITS, MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}
