"""Real clients against a running server, more closely than docs/clients.md has them: errors, streams, async, reflection, metrics.

CHOIR_GRPC, CHOIR_HTTP: a server without keys. CHOIR_KEYED_HTTP, CHOIR_KEYED_GRPC, CHOIR_API_KEY: one with them.
Prints a line a client; the first thing that is not as it should be ends it.
"""

import asyncio
import os
from importlib.metadata import version

GRPC, HTTP = os.environ["CHOIR_GRPC"], os.environ["CHOIR_HTTP"]
KEYED_GRPC, KEYED_HTTP, KEY = (os.environ[name] for name in ("CHOIR_KEYED_GRPC", "CHOIR_KEYED_HTTP", "CHOIR_API_KEY"))


def check_openai():
    import openai

    client = openai.OpenAI(base_url=HTTP + "/v1", api_key="none", max_retries=0)
    models = [model.id for model in client.models.list()]
    assert models[0] == "base" and "kjv" in models, models
    assert client.models.retrieve("kjv").owned_by == "choir"
    ask = dict(model="kjv", prompt="And he said,", max_tokens=24, seed=3)
    whole = client.completions.create(**ask)
    assert whole.usage.completion_tokens > 0 and whole.choices[0].finish_reason in ("length", "stop")
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text, (text, whole)
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    for change, error in [
        ({"model": "nobody"}, openai.NotFoundError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"logprobs": 2}, openai.BadRequestError),
    ]:
        try:
            client.completions.create(**{**ask, **change})
        except error as refused:
            assert refused.body["message"], refused
            assert refused.request_id, refused
        else:
            raise AssertionError(f"{change} was not refused")

    async def many():
        client = openai.AsyncOpenAI(base_url=HTTP + "/v1", api_key="none")
        return await asyncio.gather(*(client.completions.create(**ask) for _ in range(8)))

    assert all(one.choices[0].text == whole.choices[0].text for one in asyncio.run(many()))
    try:
        openai.OpenAI(base_url=KEYED_HTTP + "/v1", api_key="wrong").models.list()
    except openai.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was not refused")
    assert openai.OpenAI(base_url=KEYED_HTTP + "/v1", api_key=KEY).models.list().data
    return f"openai {version('openai')}: models, completions, streams, usage, async, errors, keys"


def check_triton():
    import numpy as np
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException

    def inputs(module, text="And he said,"):
        made = []
        for name, datatype, value in [
            ("text_input", "BYTES", np.array([text.encode()], dtype=np.object_)),
            ("max_tokens", "INT32", np.array([24], dtype=np.int32)),
            ("seed", "UINT64", np.array([3], dtype=np.uint64)),
        ]:
            tensor = module.InferInput(name, [1], datatype)
            tensor.set_data_from_numpy(value)
            made.append(tensor)
        return made

    def text(result):
        return result.as_numpy("text_output")[0].decode()

    client = triton.InferenceServerClient(GRPC)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("kjv")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "choir"
    assert client.get_model_metadata("kjv").inputs[0].name == "text_input"
    assert client.get_model_config("kjv").config.max_batch_size == 0
    assert any(model.name == "kjv" for model in client.get_model_repository_index().models)
    whole = text(client.infer("kjv", inputs(triton), request_id="7"))
    assert client.get_inference_statistics("kjv").model_stats[0].inference_count >= 1
    try:
        client.infer("nobody", inputs(triton))
    except InferenceServerException as refused:
        assert "NOT_FOUND" in refused.status(), refused
    else:
        raise AssertionError("an unknown model was not refused")
    try:
        client.load_model("new", config='{"path": "/no/such/file"}')
    except InferenceServerException as refused:
        assert "path" in refused.message(), refused
    else:
        raise AssertionError("a file that is not there was loaded")

    async def asynchronous():
        async with triton_aio.InferenceServerClient(GRPC) as client:
            answers = await asyncio.gather(*(client.infer("kjv", inputs(triton_aio)) for _ in range(8)))
            assert all(text(one) == whole for one in answers)

            async def requests():
                for number in range(4):
                    yield {"model_name": "kjv", "inputs": inputs(triton_aio), "request_id": str(number)}

            seen = set()
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                assert text(result) == whole
                seen.add(result.get_response().id)
                if len(seen) == 4:
                    break
            assert seen == {"0", "1", "2", "3"}, seen

    asyncio.run(asynchronous())
    headers = {"authorization": f"Bearer {KEY}"}
    keyed = triton.InferenceServerClient(KEYED_GRPC)
    assert text(keyed.infer("kjv", inputs(triton), headers=headers)) == whole
    return f"tritonclient {version('tritonclient')}: metadata, infer, streams, aio, statistics, repository, errors, keys"


def check_grpc():
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(GRPC) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        services = reflection.get_services()
        for service in ("choir.v1.Inference", "choir.v1.Admin", "inference.GRPCInferenceService"):
            assert service in services, services
        pool = DescriptorPool(reflection)
        assert pool.FindServiceByName("choir.v1.Inference").FindMethodByName("Generate")
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "kjv"):
            told = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert told.status == health_pb2.HealthCheckResponse.SERVING, name
        try:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.NOT_FOUND, refused
    return f"grpcio {version('grpcio')}: reflection, health by variant"


def check_metrics():
    from urllib.request import urlopen
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(urlopen(HTTP + "/metrics").read().decode())}
    done = [
        sample.value
        for sample in families["choir_requests"].samples
        if sample.labels.get("variant") == "kjv" and sample.labels["outcome"] == "finished"
    ]
    assert sum(done) > 8, done
    assert families["choir_request_duration_seconds"].type == "histogram"
    return f"prometheus_client {version('prometheus_client')}: {len(families)} families"


for check in (check_openai, check_triton, check_grpc, check_metrics):
    print("ok", check(), flush=True)
