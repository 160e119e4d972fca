"""Every augmentation against a plain numpy loop over single images with the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.tasks.augment import CutMix, Cutout, HorizontalFlip, Mixup, RandomCrop, RandomTranslate

KEY = jax.random.key(7)


def _batch(count=64, height=12, width=10, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, channels), np.uint8)
    if dtype != np.uint8:
        images = (images / 255).astype(dtype)
    labels = rng.integers(0, 10, count).astype(np.int32)
    return {'image': jnp.asarray(images), 'label': jnp.asarray(labels)}


def _run(augmentation, batch, key=KEY):
    out = jax.jit(lambda *args: augmentation(*args))(batch, key)
    return {name: np.asarray(value) for name, value in out.items()}


ALL = [
    RandomCrop(2),
    RandomTranslate(1.5),
    HorizontalFlip(),
    Cutout(4),
    Mixup(0.5),
    CutMix(1.0),
]


@pytest.mark.parametrize('augmentation', ALL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_pure_and_of_the_same_shape_and_dtype(augmentation, dtype):
    batch = _batch(dtype=dtype)
    before = np.array(batch['image'])
    first, again = _run(augmentation, batch), _run(augmentation, batch)
    other = _run(augmentation, batch, jax.random.key(8))
    assert first['image'].shape == before.shape and first['image'].dtype == dtype
    np.testing.assert_array_equal(first['image'], again['image'])
    assert (first['image'] != other['image']).any() and (first['image'] != before).any()
    np.testing.assert_array_equal(batch['image'], before)
    np.testing.assert_array_equal(first['label'], batch['label'])
    assert first['image'].min() >= before.min() * (type(augmentation) is not Cutout)
    assert first['image'].max() <= before.max() + 1e-6


@pytest.mark.parametrize('mode', ['reflect', 'zeros', 'edge'])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_crop_is_pad_and_slice(mode, dtype):
    batch = _batch(dtype=dtype)
    crop = RandomCrop(4, mode)
    offsets = np.asarray(crop.draw(KEY, 64)) + 4
    numpy_mode = {'zeros': 'constant'}.get(mode, mode)
    for image, out, (top, left) in zip(
        np.asarray(batch['image']), _run(crop, batch)['image'], offsets, strict=True
    ):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=numpy_mode)
        np.testing.assert_array_equal(out, padded[top : top + 12, left : left + 10])


def test_crop_offsets_are_uniform():
    offsets = np.asarray(RandomCrop(2).draw(KEY, 25 * 400))
    _, counts = np.unique(offsets @ [5, 1], return_counts=True)
    assert len(counts) == 25
    assert ((counts - 400) ** 2 / 400).sum() < 52  # chi-square, 24 degrees: p = 0.001


def test_translate_is_linear_interpolation():
    batch = _batch(dtype=np.float32)
    translate = RandomTranslate(2.5)
    offsets = np.asarray(translate.draw(KEY, 64), np.float64)
    assert np.abs(offsets).max() <= 2.5 and np.abs(offsets).max(0).min() > 2.2
    outs = _run(translate, batch)['image']
    for image, out, (down, right) in zip(np.asarray(batch['image']), outs, offsets, strict=True):
        rows = np.arange(12) + down
        columns = np.arange(10) + right
        by_row = np.stack(
            [[np.interp(rows, np.arange(12), image[:, x, c]) for c in range(3)] for x in range(10)],
            axis=1,
        )  # [channels, columns, rows]
        both = np.stack(
            [
                [np.interp(columns, np.arange(10), by_row[c, :, y]) for c in range(3)]
                for y in range(12)
            ]
        )  # [rows, channels, columns]
        np.testing.assert_allclose(out, both.transpose(0, 2, 1), atol=1e-5)


def test_flip_mirrors_half_of_the_images():
    batch = _batch(2000, 2, 4, 1)
    which = np.asarray(HorizontalFlip().draw(KEY, 2000))
    assert 900 < which.sum() < 1100
    images = np.asarray(batch['image'])
    for image, out, flip in zip(images, _run(HorizontalFlip(), batch)['image'], which, strict=True):
        np.testing.assert_array_equal(out, image[:, ::-1] if flip else image)


def test_flip_probability():
    which = HorizontalFlip(0.1).draw(KEY, 10_000)
    np.testing.assert_allclose(float(which.mean()), 0.1, atol=0.01)


@pytest.mark.parametrize('size', [1, 4, 5, 40])
def test_cutout_fills_a_clipped_square(size):
    batch = _batch()
    cutout = Cutout(size, fill=(1.0, 2.0, 3.0))
    centres = np.asarray(cutout.draw(KEY, 64, 12, 10))
    outs = _run(cutout, batch)['image']
    for image, out, (row, column) in zip(np.asarray(batch['image']), outs, centres, strict=True):
        expected = image.copy()
        top, left = row - size // 2, column - size // 2
        expected[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = [1, 2, 3]
        np.testing.assert_array_equal(out, expected)


def test_cutout_centres_reach_every_pixel():
    centres = np.asarray(Cutout(4).draw(KEY, 5000, 12, 10))
    assert len(np.unique(centres, axis=0)) == 120


def test_cutout_away_from_the_border_has_its_full_area():
    batch = {'image': jnp.ones((500, 20, 20, 1)), 'label': jnp.zeros(500, jnp.int32)}
    centres = np.asarray(Cutout(6).draw(KEY, 500, 20, 20))
    area = (_run(Cutout(6), batch)['image'] == 0).sum((1, 2, 3))
    inner = ((centres >= 3) & (centres <= 17)).all(1)
    assert inner.any() and (area[inner] == 36).all() and (area[~inner] < 36).all()


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_mixup_is_the_formula(dtype):
    batch = _batch(dtype=dtype)
    out = _run(Mixup(1.0), batch)
    images, labels = np.asarray(batch['image'], np.float64), np.asarray(batch['label'])
    assert out['mix'].dtype == np.float32 and out['mix'].shape == (64,)
    for i in range(64):
        blend = out['mix'][i] * images[i] + (1 - out['mix'][i]) * images[i - 1]
        # Rounding to uint8 costs up to a half.
        tolerance = 0.5001 if dtype == np.uint8 else 1e-6
        np.testing.assert_allclose(out['image'][i], blend, atol=tolerance)
        assert out['label_b'][i] == labels[i - 1]


def test_mixup_weights_are_beta():
    batch = _batch(20_000, 1, 1, 1)
    for alpha in (0.2, 1.0):
        mix = _run(Mixup(alpha), batch)['mix']
        np.testing.assert_allclose(mix.mean(), 0.5, atol=0.01)
        np.testing.assert_allclose(mix.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


def test_cutmix_pastes_a_rectangle_and_counts_it():
    batch = _batch(256, 12, 10, 2, np.float32)
    # Images that are constant and all different show which pixel came from where.
    batch['image'] = jnp.broadcast_to(jnp.arange(256.0)[:, None, None, None], batch['image'].shape)
    out = _run(CutMix(1.0), batch)
    areas = []
    for i in range(256):
        image = out['image'][i]
        assert set(np.unique(image)) <= {float(i), float((i - 1) % 256)}
        pasted = image[..., 0] != i
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        rows, columns = np.nonzero(pasted.any(1))[0], np.nonzero(pasted.any(0))[0]
        if len(rows):
            box = pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert box.all() and box.sum() == pasted.sum()
        np.testing.assert_allclose(out['mix'][i], 1 - pasted.mean(), atol=1e-6)
        assert out['label_b'][i] == batch['label'][i - 1]
        areas.append(pasted.mean())
    assert min(areas) < 0.05 and max(areas) > 0.6


@pytest.mark.parametrize('augmentation', [Mixup(1.0), CutMix(1.0)])
def test_padding_rows_neither_give_nor_take(augmentation):
    batch = _batch(16, dtype=np.float32)
    mask = np.ones(16, np.float32)
    mask[[0, 5, 15]] = 0
    images = np.asarray(batch['image']).copy()
    images[mask == 0] = np.nan
    out = _run(augmentation, {**batch, 'image': jnp.asarray(images), 'mask': jnp.asarray(mask)})
    untouched = (mask == 0) | (np.roll(mask, 1) == 0)
    np.testing.assert_array_equal(out['image'][untouched], images[untouched])
    np.testing.assert_array_equal(out['mix'][untouched], 1)
    assert np.isfinite(out['image'][mask == 1]).all()
    assert (out['mix'][~untouched] < 1).any()


@pytest.mark.slow
def test_sharded_batch_gives_the_same_result():
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    batch = _batch()
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))
    for augmentation in ALL:
        one, many = _run(augmentation, batch), _run(augmentation, split)
        for name in one:
            np.testing.assert_allclose(one[name], many[name], atol=1e-6)


@pytest.mark.parametrize(
    ('augmentation', 'words'),
    [
        (RandomCrop(0), 'padding=0: must be at least 1'),
        (RandomCrop(mode='wrap'), "mode='wrap': must be one of 'reflect', 'zeros', 'edge'"),
        (RandomTranslate(0.0), r'pixels=0\.0: must be above 0'),
        (HorizontalFlip(1.5), r'probability=1\.5: must be in \(0, 1\]'),
        (Cutout(0), 'size=0: must be at least 1'),
        (Mixup(0.0), r'alpha=0\.0: must be above 0'),
        (CutMix(-1.0), r'alpha=-1\.0: must be above 0'),
    ],
)
def test_check_explains(augmentation, words):
    with pytest.raises(ValueError, match=words):
        augmentation.check()


def test_batches_that_do_not_fit_are_explained():
    batch = _batch()
    with pytest.raises(ValueError, match='padding=10: images of 12×10 cannot be reflected'):
        RandomCrop(10)(batch, KEY)
    with pytest.raises(ValueError, match=r'fill=\(1, 2\): must hold 1 or 3 numbers'):
        Cutout(2, (1, 2))(batch, KEY)
    with pytest.raises(ValueError, match='Mixup or CutMix may appear only once'):
        jax.eval_shape(lambda batch: CutMix()(Mixup()(batch, KEY), KEY), batch)
    with pytest.raises(ValueError, match=r"HorizontalFlip needs 'image' .*found \['tokens'\]"):
        HorizontalFlip()({'tokens': jnp.ones((2, 3))}, KEY)
