"""Pictures of every mode and depth that Pillow knows arrive with the right values, or are refused."""

import io
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageCms

from jaxdl.data.images.pictures import NotUnderstoodError, open_picture, picture_array
from jaxdl.data.images.tfds import Tfds
from jaxdl.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 7), np.uint8)
GREY16 = RNG.integers(0, 2**16, (6, 7)).astype(np.uint16)
RGB = RNG.integers(0, 256, (6, 7, 3), np.uint8)
ALPHA = RNG.integers(1, 256, (6, 7), np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601, as JPEG has it


def encoded(picture, kind, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def cmyk(rgb) -> Image.Image:
    """With a black part that Pillow's own conversion to CMYK would leave at 0."""
    rgb = rgb.astype(float)
    black = 255 - rgb.max(-1, keepdims=True)
    inks = 255 * (1 - rgb / np.maximum(255 - black, 1))
    return Image.fromarray(np.rint(np.concatenate([inks, black], -1)).astype(np.uint8), 'CMYK')


def ycbcr(rgb) -> np.ndarray:
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    parts = (y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402)
    return np.clip(np.rint(np.stack(parts, -1)), 0, 255).astype(np.uint8)


def lab_as_rgb(lab) -> np.ndarray:
    """CIELAB (D50) with a, b as signed bytes → sRGB, by the formulas of the standards."""
    light = lab[..., 0] / 2.55
    a, b = (lab[..., i].astype(np.uint8).view(np.int8).astype(float) for i in (1, 2))
    fy = (light + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz = xyz * [0.9642, 1.0, 0.8249]
    linear = (
        xyz
        @ np.linalg.inv(
            [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
        ).T
    )  # sRGB's primaries adapted to D50
    linear = np.clip(linear, 0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return gamma * 255


def three(grey) -> np.ndarray:
    return np.repeat(np.asarray(grey, float)[..., None], 3, -1)


def palette(alpha: bool) -> tuple[bytes, np.ndarray]:
    indices = RNG.integers(0, 5, (6, 7)).astype(np.uint8)
    colours = RNG.integers(0, 256, (5, 3), np.uint8)
    picture = Image.fromarray(indices, 'L').copy()
    picture.putpalette(colours.tobytes())
    extra = {'transparency': bytes([255, 0, 3, 255, 9])} if alpha else {}
    return encoded(picture, 'PNG', **extra), colours[indices]


def with_alpha(values) -> np.ndarray:
    return np.concatenate([values.reshape(6, 7, -1), ALPHA[..., None]], -1)


LAB = np.stack([GREY, *RNG.integers(-20, 20, (2, 6, 7)).astype(np.int8).view(np.uint8)], -1)
BITS = GREY > 127

# name -> (bytes, what is right as RGB, how far it may be off)
KNOWN = {
    '1 png': (encoded(Image.fromarray(BITS), 'PNG'), three(BITS * 255), 0),
    'L png': (encoded(Image.fromarray(GREY), 'PNG'), three(GREY), 0),
    'LA png': (encoded(Image.fromarray(with_alpha(GREY)), 'PNG'), three(GREY), 0),
    'I;16 png': (encoded(Image.fromarray(GREY16), 'PNG'), three(GREY16 / 257), 0.51),
    'I;16 tiff': (encoded(Image.fromarray(GREY16), 'TIFF'), three(GREY16 / 257), 0.51),
    'I;16B tiff': (
        encoded(Image.fromarray(GREY16.astype('>u2')), 'TIFF'),
        three(GREY16 / 257),
        0.51,
    ),
    'I pgm': (
        b'P5 7 6 65535\n' + GREY16.astype('>u2').tobytes(),
        three(GREY16 / 257),
        0.51,
    ),
    'P png': (*palette(alpha=False), 0),
    'P gif': (encoded(Image.fromarray(GREY), 'GIF'), three(GREY), 0),
    'P png with transparency': (*palette(alpha=True), 0),
    'RGB png': (encoded(Image.fromarray(RGB), 'PNG'), RGB, 0),
    'RGBA png': (encoded(Image.fromarray(with_alpha(RGB)), 'PNG'), RGB, 0),
    'RGBA tiff': (encoded(Image.fromarray(with_alpha(RGB)), 'TIFF'), RGB, 0),
    'CMYK tiff': (encoded(cmyk(RGB), 'TIFF'), RGB, 2),
    'CMYK jpeg': (encoded(cmyk(RGB[:1, :1].repeat(9, 0).repeat(9, 1)), 'JPEG', quality=100),
                  RGB[:1, :1].repeat(9, 0).repeat(9, 1), 5),
    'YCbCr tiff': (encoded(Image.fromarray(ycbcr(RGB), 'YCbCr'), 'TIFF'), RGB, 3),
    'LAB tiff': (encoded(Image.fromarray(LAB, 'LAB'), 'TIFF'), lab_as_rgb(LAB), 5),
}  # fmt: skip


@pytest.mark.parametrize('name', KNOWN)
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_what_is_stored_arrives(name, channels):
    data, right, off = KNOWN[name]
    # Colours that sRGB does not have are clipped, each program in its own way.
    keep = (
        ((right > 8) & (right < 247)).all(-1) if 'LAB' in name else np.ones(right.shape[:2], bool)
    )
    assert keep.sum() > 10
    found = np.asarray(open_picture(data, channels)).reshape(*right.shape[:2], channels)
    if channels < 3:
        right = (right @ LUMA)[..., None]
        off = off + 1
    colours = found[..., : right.shape[-1]].astype(float)
    np.testing.assert_allclose(colours[keep], right[keep], atol=off)
    if channels in (2, 4) and 'RGBA' not in name and 'LA' not in name and 'trans' not in name:
        assert (found[..., -1] == 255).all()
    if channels == 4 and name == 'RGBA png':
        np.testing.assert_array_equal(found[..., 3], ALPHA)


def test_premultiplied_colours_are_divided_again(monkeypatch):
    for values, mode in ((RGB, 'RGB'), (GREY, 'L')):
        picture = Image.fromarray(with_alpha(values)).convert(f'{mode}a')
        monkeypatch.setattr(Image, 'open', lambda stream, p=picture: p)
        found = np.asarray(open_picture(b'', 3)).astype(float)
        right = values if mode == 'RGB' else three(values)
        np.testing.assert_array_less(np.abs(found - right) * ALPHA[..., None] / 255, 2)


def inks_profile(corners: dict[int, tuple[int, int, int]]) -> bytes:
    """An ICC profile of four inks by a table of 2^4 corners, each CIELAB; white where not given."""
    ramp = bytes(range(256))
    table = b''.join(bytes(corners.get(i, (255, 128, 128))) for i in range(16))
    matrix = struct.pack('>9i', *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    white = b'XYZ \0\0\0\0' + struct.pack('>3i', 63190, 65536, 54061)
    text = b'text\0\0\0\0none\0\0\0\0'
    words = b'desc\0\0\0\0' + struct.pack('>I', 5) + b'none\0' + bytes(78 + 3)
    tags, body = b'', b''
    parts = [(b'A2B0', lut), (b'wtpt', white), (b'cprt', text), (b'desc', words)]
    for name, part in parts:
        tags += name + struct.pack('>2I', 132 + 12 * len(parts) + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    size = 132 + len(tags) + len(body)
    head = struct.pack('>I4sI4s4s4s', size, b'none', 0x02400000, b'prtr', b'CMYK', b'Lab ')
    head += bytes(12) + b'acsp' + bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return head.ljust(128, b'\0') + struct.pack('>I', len(parts)) + tags + body


def test_the_profile_decides_what_the_inks_are():
    """One whose first ink is a red instead of cyan, which no formula would guess."""
    lab = (140, 128 + 50, 128 + 30)
    picture = Image.new('CMYK', (8, 8), (255, 0, 0, 0))
    for kind in ('TIFF', 'JPEG'):
        data = encoded(picture, kind, icc_profile=inks_profile({8: lab}))
        right = lab_as_rgb(np.array([[[lab[0], 50, 30]]], np.uint8))[0, 0]
        np.testing.assert_allclose(np.asarray(open_picture(data, 3))[4, 4], right, atol=5)
    of_screens = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    with pytest.raises(NotUnderstoodError, match='colour profile'):
        open_picture(encoded(picture, 'TIFF', icc_profile=of_screens), 3)


@pytest.mark.parametrize(('mode', 'dtype'), [('I', np.int32), ('F', np.float32)])
def test_depths_without_a_known_range_are_refused_by_name(mode, dtype):
    picture = Image.fromarray(GREY.astype(dtype))
    assert picture.mode == mode
    with pytest.raises(NotUnderstoodError, match=f'TIFF picture of mode {mode} cannot be read'):
        open_picture(encoded(picture, 'TIFF'), 3)


def test_every_mode_of_pillow_is_right_or_refused(monkeypatch):
    """Whatever a file's plugin returns: the picture itself is handed over here."""
    modes = [*Image.MODES, 'La', 'RGBa', 'RGBX', 'PA', 'I;16', 'I;16L', 'I;16B', 'LA', 'HSV', 'LAB']
    red = Image.new('RGB', (4, 4), (200, 30, 40))
    refused = []
    for mode in dict.fromkeys(modes):
        if mode.startswith('I;16'):
            picture, right = Image.new(mode, (4, 4), 40 * 257), (40, 40, 40)
        elif mode == 'LAB':
            profiles = [ImageCms.createProfile(name) for name in ('sRGB', 'LAB')]
            picture = ImageCms.profileToProfile(red, *profiles, outputMode='LAB')
            right = (200, 30, 40)
        elif mode in ('La', 'RGBa'):
            picture, right = red.convert(mode[:-1] + 'A').convert(mode), (200, 30, 40)
        elif mode in ('1', 'PA'):
            picture, right = red.convert('L').convert(mode), None
        else:
            picture = red.convert(mode, palette=Image.Palette.ADAPTIVE)
            right = (200, 30, 40)
        if mode in ('1', 'L', 'LA', 'La', 'PA'):
            right = picture.convert('LA' if mode == 'La' else mode).convert('L').getpixel((1, 1))
        monkeypatch.setattr(Image, 'open', lambda stream, p=picture: p)
        try:
            found = np.asarray(open_picture(b'', 3), float)
        except NotUnderstoodError as error:
            assert f'mode {mode} ' in str(error)
            refused.append(mode)
            continue
        np.testing.assert_allclose(found[1, 1], right, atol=3, err_msg=mode)
    assert set(refused) == {'I', 'F'}


def test_masks_keep_their_numbers_and_16_bits_stay():
    indices = RNG.integers(0, 5, (6, 7)).astype(np.uint8)
    picture = Image.fromarray(indices, 'L').copy()
    picture.putpalette(bytes(range(100, 115)))
    for one in (picture, Image.fromarray(indices)):
        found = picture_array(encoded(one, 'PNG'), (6, 7, 1), np.uint8, mask=True)
        np.testing.assert_array_equal(found[..., 0], indices)
    found = picture_array(encoded(Image.fromarray(GREY16), 'PNG'), (6, 7, 1), np.uint16, mask=False)
    np.testing.assert_array_equal(found[..., 0], GREY16)
    with pytest.raises(NotUnderstoodError, match='PNG picture of mode RGB'):
        picture_array(encoded(Image.fromarray(RGB), 'PNG'), (6, 7, 1), np.uint8, mask=True)
    with pytest.raises(NotUnderstoodError, match='PNG picture of mode L '):
        picture_array(encoded(Image.fromarray(GREY), 'PNG'), (6, 7, 1), np.uint16, mask=False)
    with pytest.raises(NotUnderstoodError, match='is 6x7, not 7x6'):
        picture_array(encoded(Image.fromarray(RGB), 'PNG'), (7, 6, 3), np.uint8, mask=False)


class JaxdlTestModes(tfds.core.GeneratorBasedBuilder):
    """Pictures of several modes under one feature, as sets from the web have them."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=n) for n in ('good', 'bad')]  # noqa: RUF012

    def _info(self):
        features = {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'small': tfds.features.Image(shape=(6, 7, 3)),
            'mask': tfds.features.LabeledImage(labels=5, shape=(6, 7, 1)),
            'label': tfds.features.ClassLabel(num_classes=9),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        red = Image.new('RGB', (7, 6), (200, 30, 40))
        flat = red.convert('P', palette=Image.Palette.ADAPTIVE)
        pictures = [(red, 'PNG'), (flat, 'PNG'), (red.convert('CMYK'), 'JPEG')]
        if self.builder_config.name == 'bad':
            pictures.append((Image.fromarray(GREY.astype(np.float32)), 'TIFF'))
        for index, (picture, kind) in enumerate(pictures):
            data, mask = encoded(picture, kind), encoded(Image.new('L', (7, 6), 3), 'PNG')
            yield index, {'image': data, 'small': data, 'mask': mask, 'label': index}


@pytest.mark.parametrize('limit', [0, 2**30])
def test_a_set_of_mixed_modes(limit, tmp_path):
    fields = dict(data_dir=str(tmp_path), evals=(), image_size=4, in_memory_bytes=limit)
    found = Tfds('jaxdl_test_modes/good', **fields).train_source().fetch(np.arange(3))
    for name in ('image', 'small'):
        middle = found[name][:, 2, 2].astype(int)
        assert (np.abs(middle - (200, 30, 40)) <= 5).all(), name
    assert (found['mask'] == 3).all()
    with pytest.raises(UserError, match=r'example \d .*TIFF picture of mode F') as caught:
        source = Tfds('jaxdl_test_modes/bad', **fields).train_source()
        source.fetch(np.arange(4))
    assert 'damaged' not in str(caught.value)
