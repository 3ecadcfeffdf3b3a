"""The promises of `edgekd.runtimes.session` as tests: inherit `SessionConformance` and give it a runtime and a model.

class TestMyRuntime(SessionConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        need_runtime("mine")
        return Subject(runtime="mine", bundle=..., blobs=..., reference=lambda images: ...)

One suite serves runtimes of graphs, of modules and of engines: how many images a library takes at once cannot be seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.errors import UserError
from edgekd.runtimes.formats import model_files, model_size_mib
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import RUNTIMES, FloatArray, Session, open_bundle


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A runtime and a model for it.

    Attributes:
        runtime: Registry name.
        bundle: A float32 model that its session runs with any batch, of inner shape (C, H, W).
        blobs: Its files.
        reference: The true logits (N, K) of images (N, C, H, W), from another implementation.
    """

    runtime: str
    bundle: ModelBundle
    blobs: Blobs
    reference: Callable[[FloatArray], FloatArray]

    @property
    def input_name(self) -> str:
        return self.bundle.inputs[0].name

    @property
    def output_name(self) -> str:
        return self.bundle.outputs[0].name

    def images(self, samples: int, *, seed: int = 0) -> FloatArray:
        _, channels, height, width = (int(size) if isinstance(size, int) else 0 for size in self.bundle.inputs[0].shape)
        return random_images((channels, height, width), samples=samples, seed=seed)

    def open(self, *, threads: int | None = 1, batch: int | None = None) -> Session:
        return open_bundle(self.bundle, self.blobs, self.runtime, threads=threads, batch=batch)


def need_runtime(name: str) -> None:
    """Skips the test where the runtime cannot work; the reason says what is missing and what installs it."""
    found = RUNTIMES.get(name).availability()
    if not found.ok:
        pytest.skip(f"needs {name}: {found.reason} ({found.install})")


class SessionConformance:
    """What every runtime and every session does."""

    @pytest.fixture
    def subject(self) -> Subject:
        """The runtime under test and its model."""
        raise NotImplementedError("give the suite a subject: override this fixture")

    def test_the_runtime_is_available_and_names_its_version(self, subject: Subject) -> None:
        found = RUNTIMES.get(subject.runtime).availability()
        assert found.ok
        assert found.version
        assert not found.reason

    def test_the_logits_are_those_of_the_reference(self, subject: Subject) -> None:
        images = subject.images(3)
        with subject.open() as session:
            logits = session.infer({subject.input_name: images})[subject.output_name]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, subject.reference(images), rtol=1e-4, atol=1e-4)

    def test_a_dynamic_batch_takes_any_number_of_images(self, subject: Subject) -> None:
        images = subject.images(5)
        with subject.open() as session:
            whole = session.infer({subject.input_name: images})[subject.output_name]
            alone = session.infer({subject.input_name: images[:1]})[subject.output_name]
        assert len(whole) == 5
        np.testing.assert_allclose(alone, whole[:1], rtol=1e-4, atol=1e-4)

    def test_a_fixed_batch_takes_exactly_that_many_images(self, subject: Subject) -> None:
        images = subject.images(3)
        with subject.open(batch=2) as session:
            logits = session.infer({subject.input_name: images[:2]})[subject.output_name]
            with pytest.raises(UserError, match="2x"):
                session.infer({subject.input_name: images})
        np.testing.assert_allclose(logits, subject.reference(images[:2]), rtol=1e-4, atol=1e-4)

    def test_an_unknown_input_is_named(self, subject: Subject) -> None:
        with subject.open() as session, pytest.raises(UserError, match="'pixels' is not an input"):
            session.infer({subject.input_name: subject.images(1), "pixels": subject.images(1)})

    def test_a_missing_input_is_named(self, subject: Subject) -> None:
        with subject.open() as session, pytest.raises(UserError, match=f"'{subject.input_name}' is missing"):
            session.infer({})

    def test_an_image_of_another_size_is_refused_with_both_shapes(self, subject: Subject) -> None:
        small = np.ascontiguousarray(subject.images(1)[:, :, :-1])
        with subject.open(batch=1) as session, pytest.raises(UserError, match="must be float32 of shape 1x"):
            session.infer({subject.input_name: small})

    def test_outputs_belong_to_the_caller(self, subject: Subject) -> None:
        with subject.open(batch=1) as session:
            first = session.infer({subject.input_name: subject.images(1)})[subject.output_name]
            kept = first.copy()
            session.infer({subject.input_name: subject.images(1, seed=1)})
        np.testing.assert_array_equal(first, kept)

    def test_two_sessions_do_not_disturb_each_other(self, subject: Subject) -> None:
        images = subject.images(1)
        with subject.open(threads=1) as one, subject.open(threads=2, batch=1) as two:
            before = one.infer({subject.input_name: images})[subject.output_name]
            two.infer({subject.input_name: subject.images(1, seed=1)})
            after = one.infer({subject.input_name: images})[subject.output_name]
        np.testing.assert_array_equal(before, after)

    def test_the_input_names_are_those_of_the_bundle(self, subject: Subject) -> None:
        with subject.open() as session:
            assert session.input_names == (subject.input_name,)

    def test_a_session_is_recognised_by_its_protocol(self, subject: Subject) -> None:
        with subject.open() as session:
            assert isinstance(session, Session)

    def test_the_environment_says_what_really_runs(self, subject: Subject) -> None:
        with subject.open(threads=1) as session:
            found = session.environment()
        assert found["runtime"] == subject.runtime
        assert found["version"]
        assert found["provider"]
        assert found["threads"] == 1
        assert json.loads(json.dumps(found)) == found

    def test_the_times_of_layers_are_told_in_full_or_not_at_all(self, subject: Subject) -> None:
        runtime, feeds = RUNTIMES.get(subject.runtime), {subject.input_name: subject.images(1)}
        found = runtime.layers(subject.bundle, subject.blobs, feeds, threads=1, batch=1, calls=3)
        if found is None:
            return
        assert found.calls == 3
        assert found.total_ms > 0
        assert sum(found.share_by_arithmetic.values()) == pytest.approx(1)
        assert found.share_by_arithmetic["float"] > 0.3
        assert "int8" not in found.share_by_arithmetic
        assert sum(found.nodes_by_provider.values()) == len(found.layers)
        assert found.fell_back == ()

    def test_an_engine_of_another_runtime_is_refused_by_its_format(self, subject: Subject) -> None:
        engine = ModelBundle(kind=BundleKind.ENGINE, tags={"format": "another"})
        with pytest.raises(UserError, match="this is an another engine"):
            open_bundle(engine, subject.blobs, subject.runtime)

    def test_its_own_bundle_is_one_that_it_takes(self, subject: Subject) -> None:
        runtime = RUNTIMES.get(subject.runtime)
        assert runtime.takes(subject.bundle)
        assert model_files(subject.bundle)[0] == runtime.model_file
        assert model_size_mib(subject.bundle, subject.blobs) > 0

    def test_a_kind_it_does_not_accept_is_refused_with_what_would_do(self, subject: Subject) -> None:
        report = ModelBundle(kind=BundleKind.REPORT)
        with pytest.raises(UserError, match="this is a report bundle"):
            open_bundle(report, subject.blobs, subject.runtime)
