"""Features against librosa, and speed and pitch changes."""

import numpy as np
import pytest

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.features import AudioFeatures, mel_filters
from returnn_hydra.data.perturb import AudioPerturbation, change_speed, speed_length

librosa = pytest.importorskip("librosa")


def noise(num_samples=4000, seed=0):
    rng = np.random.default_rng(seed)
    return 0.3 * np.sin(np.arange(num_samples) * 0.2) + 0.1 * rng.normal(size=num_samples)


@pytest.mark.filterwarnings("ignore:n_fft")
@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("num_samples", [400, 1601, 4000])
def test_log_mel_against_librosa(rate, num_samples):
    audio = noise(num_samples)
    features = AudioFeatures("log_mel_filterbank", 20, peak_normalization=False)
    energies = librosa.feature.melspectrogram(
        y=audio, sr=rate, n_mels=20, n_fft=int(0.025 * rate), hop_length=int(0.01 * rate)
    )
    found = features(audio, rate)
    np.testing.assert_allclose(found, np.log(np.maximum(1e-3, energies)).T, atol=1e-5)
    assert found.dtype == np.float32
    assert features.num_frames(np.array([num_samples]), rate).tolist() == [len(found)]


def test_db_mel_and_spectrogram_against_librosa():
    audio = noise()
    energies = librosa.feature.melspectrogram(
        y=audio, sr=16000, n_mels=30, n_fft=400, hop_length=160, fmin=60, fmax=7600, center=False
    )
    options = {"fmin": 60, "fmax": 7600, "center": False, "min_amp": 1e-5}
    features = AudioFeatures("db_mel_filterbank", 30, feature_options=options, peak_normalization=False)
    np.testing.assert_allclose(features(audio, 16000), 20 * np.log10(np.maximum(1e-5, energies)).T, atol=1e-4)
    assert features.num_frames(np.array([4000]), 16000).tolist() == [energies.shape[1]]
    spectrum = np.abs(librosa.stft(audio, n_fft=512, hop_length=160, win_length=400))[1:].T
    features = AudioFeatures("linear_spectrogram", 256, peak_normalization=False)
    np.testing.assert_allclose(features(audio, 16000), spectrum, rtol=1e-4, atol=1e-5)
    assert features.num_frames(np.array([4000]), 16000).tolist() == [len(spectrum)]


def test_mfcc_against_librosa():
    audio = noise()
    expected = librosa.feature.mfcc(y=audio, sr=16000, n_mfcc=13, n_mels=64, n_fft=400, hop_length=160)
    expected[0] = librosa.feature.rms(y=audio, frame_length=400, hop_length=160)
    found = AudioFeatures("mfcc", 13, feature_options={"n_mels": 64}, peak_normalization=False)(audio, 16000)
    np.testing.assert_allclose(found, expected.T, rtol=1e-4, atol=1e-3)


def test_log_log_mel_against_librosa():
    audio = noise()
    energies = librosa.feature.melspectrogram(y=audio, sr=16000, n_mels=40, n_fft=400, hop_length=160)
    expected = librosa.amplitude_to_db(np.log(np.maximum(1e-3, energies)))
    found = AudioFeatures("log_log_mel_filterbank", peak_normalization=False)(audio, 16000)
    np.testing.assert_allclose(found, expected.T, atol=1e-3)


@pytest.mark.parametrize(
    ("rate", "size", "num", "fmin", "fmax"), [(16000, 400, 80, 0, None), (22050, 551, 40, 60, 7600)]
)
def test_mel_filters_against_librosa(rate, size, num, fmin, fmax):
    expected = librosa.filters.mel(sr=rate, n_fft=size, n_mels=num, fmin=fmin, fmax=fmax)
    np.testing.assert_allclose(mel_filters(rate, size, num, fmin, fmax), expected.T, atol=1e-7)


def test_deltas_against_librosa():
    audio = noise()
    plain = AudioFeatures("mfcc", 5)(audio, 16000)
    found = AudioFeatures("mfcc", 5, with_delta=2)(audio, 16000)
    deltas = [librosa.feature.delta(plain, order=n, axis=0) for n in (1, 2)]
    np.testing.assert_allclose(found, np.concatenate([plain, *deltas], axis=1), atol=1e-4)
    with pytest.raises(DataError, match=r"seq_tag 'x': 8 frames are too few"):
        AudioFeatures("mfcc", 5, with_delta=1)(noise(1200), 16000, seq_tag="x")


def test_normalisation(tmp_path):
    audio = noise()
    data = AudioFeatures("mfcc", 4, norm_mean="per_seq", norm_std_dev="per_seq")(audio, 16000)
    np.testing.assert_allclose(data.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(data.std(axis=0), [*data.std(axis=0)[:1], 1, 1, 1], atol=1e-3)
    plain = AudioFeatures("mfcc", 4)(audio, 16000)
    mean, std = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 1, 2])
    np.savetxt(tmp_path / "mean", mean)
    np.savetxt(tmp_path / "std", std)
    found = AudioFeatures("mfcc", 4, norm_mean=str(tmp_path / "mean"), norm_std_dev=tmp_path / "std")(audio, 16000)
    np.testing.assert_allclose(found, (plain - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        AudioFeatures("mfcc", 4, norm_mean=2, norm_std_dev=3.0)(audio, 16000), (plain - 2) / 3, rtol=1e-5
    )
    with pytest.raises(DataError, match=r"norm_mean: \(4,\) numbers, expected one for each of the 5 features"):
        AudioFeatures("mfcc", 5, norm_mean=mean)
    with pytest.raises(DataError, match="no file 'nowhere'"):
        AudioFeatures(norm_mean="nowhere")


@pytest.mark.parametrize("num_samples", [1600, 1760, 1920])
def test_join_frames_repeats_the_last(num_samples):
    audio = noise(num_samples)
    plain = AudioFeatures("log_mel_filterbank", 4)(audio, 16000)
    features = AudioFeatures("log_mel_filterbank", 4, join_frames=3)
    joined = features(audio, 16000)
    rows = [plain[min(t, len(plain) - 1)] for t in range(-(-len(plain) // 3) * 3)]
    np.testing.assert_array_equal(joined, np.stack(rows).reshape(-1, 12))
    assert features.num_frames(np.array([num_samples]), 16000).tolist() == [len(joined)]
    assert features.spec.shape == (None, 12)


def test_raw_waveform():
    audio = noise(100)
    found = AudioFeatures("raw", preemphasis=0.5)(audio, 16000)
    expected = audio.copy()
    expected[1:] -= 0.5 * audio[:-1]
    np.testing.assert_allclose(found[:, 0], expected / np.abs(expected).max(), rtol=1e-6)
    stereo = AudioFeatures("raw", num_channels=2, peak_normalization=False)
    assert stereo(np.stack([audio, -audio], axis=1), 16000).shape == (100, 2, 1)
    assert stereo.spec.shape == (None, 2, 1)


def test_errors():
    for options, message in [
        ({"features": "mfc"}, "did you mean 'mfcc'"),
        ({"features": "mfcc", "num_channels": 2}, "only raw"),
        ({"features": "raw", "num_feature_filters": 3}, "one feature"),
        ({"feature_options": {"fmim": 3}}, "no option 'fmim', did you mean 'fmin'"),
        ({"random_permute": {"rnd_zom_switch": 1}}, "rnd_zom_switch"),
    ]:
        with pytest.raises(DataError, match=message):
            AudioFeatures(**options)
    for audio, rate, message in [
        (noise(500), 8000, "8000 Hz, expected 16000"),
        (np.zeros(0), 16000, "no samples"),
        (np.zeros((500, 2)), 16000, "2 channels, expected 1"),
    ]:
        with pytest.raises(DataError, match=message):
            AudioFeatures(sample_rate=16000)(audio, rate)
    with pytest.raises(DataError, match="random generator"):
        AudioFeatures(random_permute=True)(noise(), 16000)


def test_silence_is_finite():
    for kind in ("mfcc", "log_mel_filterbank", "log_log_mel_filterbank", "db_mel_filterbank"):
        features = AudioFeatures(kind, norm_mean="per_seq", norm_std_dev="per_seq")
        assert np.isfinite(features(np.zeros(3000), 16000)).all()


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 0.85])
@pytest.mark.parametrize("num_samples", [1000, 1003])
def test_speed(factor, num_samples):
    audio = np.sin(np.arange(num_samples) * 0.1)
    changed = change_speed(audio, factor)
    assert len(changed) == speed_length(np.array([num_samples]), factor)[0]
    assert len(changed) == pytest.approx(num_samples / factor, abs=1)
    middle = slice(len(changed) // 4, len(changed) // 2)
    np.testing.assert_allclose(changed[middle], np.sin(np.arange(len(changed)) * 0.1 * factor)[middle], atol=0.01)


def test_perturbation_is_a_function_of_the_generator():
    always = {"rnd_zoom_switch": 1.0, "rnd_stretch_switch": 1.0, "rnd_pitch_switch": 1.0}
    perturb = AudioPerturbation.from_option(always)
    a, b, c = (perturb(noise(), 16000, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert len(a) != len(c)
    assert AudioPerturbation.from_option(False) is None
    quiet = AudioPerturbation(
        rnd_zoom_switch=0, rnd_stretch_switch=0, rnd_pitch_switch=0, rnd_scale_lower=0.5, rnd_scale_upper=0.5
    )
    np.testing.assert_allclose(quiet(noise(), 16000, np.random.RandomState(1)), 0.5 * noise())
