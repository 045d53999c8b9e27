"""One running gateway: models, engine, classifier and telemetry, started and stopped together.

A start ends in a gateway that answers as the bundles promise, or in an error; there is no half-started state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from bundle.errors import (
    BundleError,
    BusyError,
    EngineUnavailable,
    GoldenMismatch,
    LimitExceeded,
    ModelUnknown,
    RateLimited,
    RequestError,
)
from bundle.golden import compare
from bundle.machine import cores
from bundle.manifest import Parity
from serving import catalogue
from serving.admission import TERMS, Admission, Terms
from serving.cache import AnswerCache
from serving.catalogue import ServedModel
from serving.classifier import Answers, Classifier, Text
from serving.decisions import Decisions, file_of
from serving.engines import Computing, Engine, make_engine
from serving.keys import Caller, Keys
from serving.measuring import Measuring
from serving.running import UNBOUND, running
from serving.settings import Settings
from serving.shadow import Behind, Shadow, Traffic
from serving.versions import Versions


class Gateway:
    """Everything that a request needs, and nothing that knows HTTP.

    Raises:
        KeysInvalid: the file of keys is wrong.
        SlipwayError: spans are to be sent and the packages for it are not installed.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.engine = engine or make_engine(settings)
        self.models: dict[str, ServedModel] = {}
        self.measured: dict[str, Parity] = {}
        self.measuring = Measuring(settings)
        self.telemetry = self.measuring.telemetry
        self.engine.watcher = self.telemetry
        self.keys = Keys(
            Path(settings.keys_file) if settings.keys_file else None,
            {"user": settings.user_key_sha256, "admin": settings.admin_key_sha256},
        )
        self.classifier = Classifier(
            self.engine,
            parallel_calls=settings.parallel_calls,
            timeout_seconds=settings.timeout_seconds,
            workers=min(4, cores()),
            admission=Admission(settings.max_pending_tokens),
            max_tokens=settings.max_request_tokens,
            engine_tokens=settings.engine_tokens,
            cache=AnswerCache(settings.cache_bytes),
            waited=self.telemetry.waited,
        )
        self.started = False
        self.draining = False
        self._beside = self._classifier(self.engine)
        self.traffic = Traffic()
        self._decisions = Decisions(file_of(settings.versions_file, settings.bundles))
        self.versions = Versions(
            self.models,
            self.engine,
            self._decisions,
            opened=self._opened,
            checked=lambda model: self.check_golden(model, self._beside),
            shadowed=self._shadowed,
            patience=settings.timeout_seconds,
        )

    def _classifier(self, engine: Computing) -> Classifier:
        """One that leaves the engine to others as far as it can: one call at a time."""
        seconds, unbound = self.settings.timeout_seconds, Admission(UNBOUND)
        return Classifier(engine, parallel_calls=1, timeout_seconds=seconds, workers=1, admission=unbound)

    def _opened(self, home: Path, name: str, number: int) -> ServedModel:
        bundle = catalogue.open_kept(home, name, number)
        how = running(bundle.manifest, self.settings)
        return catalogue.checked(bundle, self.settings.max_windows, self.settings.rules, how)

    def _shadowed(self, first: ServedModel, second: ServedModel) -> Shadow:
        return Shadow(first, second, self._classifier(Behind(self.engine, self.traffic)), self.telemetry)

    async def start(self, say: Callable[[str], None] = lambda sentence: None) -> None:
        """Loads the bundles, starts the engine and passes the golden rows through it.

        Args:
            say: told what is being done, one sentence each.

        Raises:
            BundleError: nothing to serve, a broken bundle, or an engine that does not compute what it promises.
            EngineUnavailable: the engine does not start.
        """
        say(f"reading bundles under {self.settings.bundles}")
        self._decisions.read()
        models = await asyncio.to_thread(
            catalogue.load,
            self.settings.bundles,
            lambda sentence: say(f"skipped: {sentence}"),
            decided={name: made.serving for name, made in self._decisions.made.items()},
            max_windows=self.settings.max_windows,
            rules=self.settings.rules,
            run_as=lambda manifest: running(manifest, self.settings),
        )
        self.models.update(models)
        for model in self.models.values():
            if model.running.told:
                say(f"{model.name}: {model.running.told}")
        say(f"starting the {self.engine.name} engine with {', '.join(self.models)}")
        try:
            self._check_default()
            await self.engine.start(list(self.models.values()))
            for model in self.models.values():
                self.measured[model.name] = parity = await self.check_golden(model)
                say(f"{model.name}: {parity.rows} golden rows agree, largest difference {parity.max_abs:.1e}")
            self.engine.watch(self.check_golden)
        except BaseException:
            await self.stop()
            raise
        self.versions.begin(self.measured)
        self.measuring.start()
        self.started = True

    def _check_default(self) -> None:
        name = self.settings.default_model
        if name and name not in self.models:
            raise BundleError(f"the default model {name!r} is not served; served are {', '.join(self.models)}")

    async def stop(self) -> None:
        """Stops the engine; can be called twice."""
        self.started = False
        await self.versions.end()
        await self.engine.stop()
        self.classifier.close()
        await self.measuring.stop()
        self._beside.close()

    async def check_golden(self, model: ServedModel, classifier: Classifier | None = None) -> Parity:
        """Passes a model's golden rows through the live engine.

        Args:
            classifier: computes them; by default the one that answers requests.

        Raises:
            GoldenMismatch: it does not reproduce them; says both sides.
        """
        encoded = await asyncio.to_thread(
            lambda: [model.encoder.encode(row.text, row.pair, truncate=True) for row in model.golden]
        )
        found = await (classifier or self.classifier).infer(model, encoded)
        task, recorded = model.manifest.task, model.parity
        measured = compare(
            model.golden,
            found,
            task,
            model.manifest.text.joining,
            reference=self.engine.name,
            tolerance=recorded.tolerance,
        )
        if measured.max_abs > recorded.tolerance:
            raise GoldenMismatch(
                model.name,
                model.format,
                f"logits from the {self.engine.name} engine differ by up to {measured.max_abs:.3g}, "
                f"the bundle allows {recorded.tolerance:.3g} (export measured {recorded.max_abs:.3g})",
            )
        # INT8 is held to its tolerance alone: another CPU's kernels round differently, and a row near a tie may flip.
        exact = model.artifact.precision == "fp32"
        if exact and measured.label_agreement < recorded.label_agreement:
            raise GoldenMismatch(
                model.name,
                model.format,
                f"{measured.label_agreement:.1%} of the rows get the recorded answer from the {self.engine.name} "
                f"engine, export measured {recorded.label_agreement:.1%}",
            )
        return measured

    def model(self, name: str) -> ServedModel:
        """The model of this name.

        Raises:
            ModelUnknown: naming those that are served.
        """
        try:
            return self.models[name]
        except KeyError:
            raise ModelUnknown(name, sorted(self.models)) from None

    def choose(self, name: str, request: bytes) -> ServedModel:
        """The version of a model that answers a request: see `serving.versions.Versions.choose`.

        Raises:
            ModelUnknown: naming those that are served.
        """
        return self.versions.choose(self.model(name).name, request)

    def default_model(self) -> ServedModel:
        """The model that is meant where a caller names none.

        Raises:
            RequestError: several are served and the settings name none of them.
        """
        name = self.settings.default_model
        if not name and len(self.models) != 1:
            raise RequestError(
                "model",
                f"several models are served here ({', '.join(sorted(self.models))}) and none is the default; "
                "ask a route that names one, or have SLIPWAY_DEFAULT_MODEL set",
            )
        return self.model(name or next(iter(self.models)))

    async def answer(
        self, model: ServedModel, texts: Sequence[Text], *, truncate: bool = False, field: str = "inputs"
    ) -> Answers:
        """Answers one request, whatever language it came in: limit, then `predict` on the terms that the door read.

        Args:
            field: what the request calls its list of texts.

        Raises:
            RequestError: too many texts, or one that cannot be read, is too long or is not what the model reads.
            BusyError: it was not let in; tells when a retry makes sense.
            EngineUnavailable, EngineTimeout: no answer now.
        """
        if len(texts) > self.settings.max_texts:
            raise LimitExceeded(field, "texts", len(texts), self.settings.max_texts)
        terms = TERMS.get() or Terms(self.settings.timeout_seconds)
        return await self.predict(model, texts, terms, truncate=truncate, field=field)

    async def predict(
        self,
        model: ServedModel,
        texts: Sequence[Text],
        terms: Terms,
        *,
        truncate: bool = False,
        field: str = "inputs",
    ) -> Answers:
        """Rate of the key, prediction, rules, telemetry, shadow.

        Raises:
            RequestError: a text cannot be read, is too long or is not what the model reads.
            BusyError: it was not let in; tells when a retry makes sense.
            EngineUnavailable, EngineTimeout: no answer now.
        """
        if not terms.patient:  # a stream that was let in is carried over an outage, line by line
            self.engine.check_open(model)
        try:
            if terms.caller is not None:
                await _rated(terms.caller, len(texts), patient=terms.patient)
            with self.traffic, self.versions.using(model):
                answers = await self.classifier.answer(model, texts, terms, truncate=truncate, field=field)
        except BusyError as error:
            self.telemetry.refusals.labels(model.name, error.reason).inc()
            raise
        if answers.hits is not None:
            self.telemetry.cache.labels(model.name, "hit").inc(answers.hits)
            self.telemetry.cache.labels(model.name, "miss").inc(len(texts) - answers.hits)
        self.measuring.answered(model, answers)
        line = self.versions.line(model.name)
        if line and line.shadow:
            # Once the answer has left.
            line.shadow.offer(model, texts, truncate, answers)
        return answers

    def check_room(self, name: str, terms: Terms) -> None:
        """Refuses a request before its body is read where there is no room for it, or keeps a place for it.

        Args:
            name: of the model; empty stands for the default one, and one that is not served has room.

        Raises:
            Overloaded: there is none.
        """
        if not name:
            name = self.settings.default_model or next(iter(self.models), "")
        try:
            self.classifier.admission.check(name, terms)
        except BusyError as error:
            self.telemetry.refusals.labels(name, error.reason).inc()
            raise

    async def not_ready(self) -> dict[str, str]:
        """Why models cannot answer now, by model name; empty when all can."""
        if reason := self._closed():
            return dict.fromkeys(self.models, reason) or {"server": reason}
        reasons = await self.engine.ready()
        return {name: reasons[model.id] for name, model in self.models.items() if model.id in reasons}

    async def check_ready(self, model: ServedModel) -> None:
        """Raises `EngineUnavailable` if this version of the model cannot answer now."""
        if reason := self._closed() or (await self.engine.ready()).get(model.id):
            raise EngineUnavailable(reason)

    def _closed(self) -> str:
        """Why the whole server takes no work; empty when it does."""
        if self.draining or not self.started:
            return "the server is stopping" if self.draining else "the server is starting"
        return ""


async def _rated(caller: Caller, texts: int, *, patient: bool) -> None:
    """Takes texts from the rate of a key; a patient request waits until they can be had.

    Raises:
        RateLimited: they cannot now.
    """
    while True:
        try:
            return caller.take(texts)
        except RateLimited as error:
            if not patient:
                raise
            await asyncio.sleep(error.retry_after)
