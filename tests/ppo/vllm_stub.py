"""A stand-in for a vLLM server: the endpoints that TRL's client calls, over HTTP, and a model that answers.

The client is the real one. Two things of it need a GPU and are replaced: joining the group through which weights go,
and the broadcast itself, in whose place the stub takes the tensors over.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trl.generation import vllm_client

Answer = tuple[list[int], list[float]]


class _Server(ThreadingHTTPServer):
    # The client connects as often at once; those that do not fit wait for a second and more.
    request_queue_size = 64


class VLLMStub:
    """Serves a plain model, which has other weights than the policy until it gets the policy's.

    Attributes:
        model: Answers greedily.
        answer: Called with a prompt and the body of its request; gives an answer and the log-probabilities of its
            tokens. A test may put another one in its place.
        model_config: What `/server_info` says of the served model.
        weight_transfer_config: What it says of how weights come.
        calls: Paths that were called, without those that sample.
        requests: Bodies of the requests to sample, in any order.
        received: Tensors of every weight update.
    """

    def __init__(self, model: nn.Module, max_model_len: int = 128) -> None:
        self.model = model.eval()
        self.answer: Callable[[list[int], dict[str, Any]], Answer] = self.greedy
        self.model_config = {
            "logprobs_mode": "raw_logprobs",
            "max_model_len": max_model_len,
            "hf_config": str(model.config),
        }
        self.weight_transfer_config: dict | None = {"backend": "nccl"}
        self.calls: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.received: list[dict[str, Tensor]] = []
        self._announced: dict[str, list] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "VLLMStub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Has TRL's client find vLLM installed, and hand its tensors over to the stub."""
        for module in ("trl.generation.vllm_client", "pangu_trl.ppo.generation.vllm_server"):
            monkeypatch.setattr(f"{module}.is_vllm_available", lambda: True)
        monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda client, device: None)
        monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", dict, raising=False)
        monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", self, raising=False)

    def trainer_send_weights(self, iterator: Iterator[tuple[str, Tensor]], trainer_args: dict) -> None:
        """Takes what the client would broadcast; all of it is held first, as a real buffer holds a lot of it."""
        tensors = list(iterator)
        self.received.append({name: tensor.detach().clone() for name, tensor in tensors})
        assert len(self.received[-1]) == len(tensors), "a name was sent twice"

    def greedy(self, prompt: list[int], body: dict[str, Any]) -> Answer:
        """The best tokens one after the other, without cache or padding."""
        answer, logprobs = [], []
        temperature = body["temperature"] if self.model_config["logprobs_mode"] == "processed_logprobs" else 1.0
        with torch.no_grad(), self._lock:
            while len(answer) < body["max_tokens"] and not set(answer[-1:]) & set(body["stop_token_ids"]):
                logits = self.model(torch.tensor([prompt + answer])).logits[0, -1]
                answer.append(int(logits.argmax()))
                logprobs.append((logits / temperature).log_softmax(-1)[answer[-1]].item())
        return answer, logprobs

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for prompt in body["prompt"]:
            answer, logprobs = self.answer(prompt, body)
            tokens = [f"token_id:{token}" for token in answer]
            # A likelier token comes along, as the interface allows.
            top = [{"token_id:0": value + 1, token: value} for token, value in zip(tokens, logprobs, strict=True)]
            noted = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top}
            choices.append(
                {
                    "prompt_token_ids": prompt,
                    "token_ids": answer,
                    "logprobs": None if body["logprobs"] is None else noted,
                }
            )
        return {"choices": choices}

    def _take_over(self) -> None:
        """Loads the weights that came, which must be those that were announced, and must be all that the model has."""
        received, announced = self.received[-1], self._announced
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in received.values()]
        assert [list(received), dtypes, [list(tensor.shape) for tensor in received.values()]] == [
            announced[key] for key in ("names", "dtype_names", "shapes")
        ]
        # By name, so that a weight that two modules share is expected once.
        assert list(received) == [name for name, _ in self.model.named_parameters()]
        self.model.load_state_dict(received, strict=False)

    def _respond(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        if path == "/v1/completions":
            self.requests.append(body)
            return self._completion(body)
        self.calls.append(path)
        if path == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if path == "/server_info":
            config = {"model_config": self.model_config, "weight_transfer_config": self.weight_transfer_config}
            return {"vllm_config": config}
        if path == "/update_weights":
            self._announced = body["update_info"]
        if path == "/finish_weight_update":
            self._take_over()
        return {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.respond(None)

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.respond(json.loads(content) if content else None)

            def respond(self, body: dict[str, Any] | None) -> None:
                try:
                    status, content = 200, json.dumps(stub._respond(self.path.split("?")[0], body))
                except Exception as error:
                    status, content = 400, repr(error)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
