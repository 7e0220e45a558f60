"""Serve recommendations over HTTP from a folder that ``recbole-pref --export`` wrote.

pip install fastapi uvicorn faiss-cpu torch
EXPORT=exported/ uvicorn --app-dir examples serve:app
curl -X POST localhost:8000/recommend -H "Content-Type: application/json" -d '{"items": ["242", "302"], "k": 5}'
"""

import json
import os
from pathlib import Path

import faiss
import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

folder = Path(os.environ.get("EXPORT", "exported"))
max_length = json.loads((folder / "settings.json").read_text())["max_length"]
tokens = json.loads((folder / "item_tokens.json").read_text())
ids = {token: number for number, token in enumerate(tokens, start=1)}
encode = torch.export.load(folder / "query_encoder.pt2").module()
index = faiss.read_index(str(folder / "hnsw.faiss"))
app = FastAPI()


class Query(BaseModel):
    items: list[str]  # what the user had, the latest last
    k: int = Field(10, ge=1, le=1000)


@app.post("/recommend")
def recommend(query: Query) -> list[dict]:
    known = [ids[item] for item in query.items if item in ids]
    seen = set(known)
    if not known:
        raise HTTPException(422, "no item of the sequence is known")
    kept = known[-max_length:]
    sequence = torch.tensor([kept + [0] * (max_length - len(kept))])
    with torch.no_grad():
        vector = encode(sequence, torch.tensor([len(kept)])).numpy()
    scores, places = index.search(vector, query.k + len(seen))  # more, as seen items are left out
    best = [(int(place), float(score)) for place, score in zip(places[0], scores[0]) if place >= 0]
    unseen = [(place, score) for place, score in best if place + 1 not in seen]
    return [{"item": tokens[place], "score": score} for place, score in unseen[: query.k]]
