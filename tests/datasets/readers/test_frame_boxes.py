"""Boxes in frames from MOT-challenge's files, tables, CVAT and COCO; what is none is refused in one line."""

from __future__ import annotations

import json

import pytest

from datasets.readers.frame_boxes import FrameBox, read_frame_boxes
from tests.datasets.miniatures import message

CVAT = """<?xml version="1.0"?><annotations><version>1.1</version>
<track id="4" label="person"><box frame="0" outside="0" xtl="1.5" ytl="2" xbr="11" ybr="32"/>
<box frame="1" outside="1" xtl="1" ytl="2" xbr="11" ybr="32"/></track>
<track id="5" label="person"><box frame="1" outside="0" xtl="3" ytl="4" xbr="9" ybr="20"/></track></annotations>"""
COCO = {
    "images": [{"id": 70, "frame_id": 0}, {"id": 71, "file_name": "a/img_000002.jpg"}],
    "annotations": [
        {"image_id": 71, "bbox": [3, 4, 6, 16], "track_id": 5, "score": 0.5},
        {"image_id": 70, "bbox": [1.5, 2, 9.5, 30], "track_id": 4},
    ],
}
WANTED = [FrameBox(1, "4", 1.5, 2, 11, 32), FrameBox(2, "5", 3, 4, 9, 20)]


@pytest.mark.parametrize(("name", "text", "boxes"), [
    ("gt.txt", "2,5,3,4,6,16,1,1,1.0\n1,4,1.5,2,9.5,30,1,1,1.0\n1,9,1,2,3,4,0,1,1.0\n", WANTED),
    ("det.txt", "1, -1, 1.5, 2, 9.5, 30, 0.75, -1, -1, -1\n\n1 -1 3 4 6 16\n",
     [FrameBox(1, "", 1.5, 2, 11, 32, 0.75), FrameBox(1, "", 3, 4, 9, 20)]),
    ("boxes.csv", "Frame,seq,x1,y1,x2,y2,score,other\n2,5,3,4,9,20,1,z\n1,4.0,1.5,2,11,32,1,z\n", WANTED),
    ("plain.csv", "x1,y1,x2,y2,frame\n3,4,9,20,7\n", [FrameBox(7, "", 3, 4, 9, 20)]),
    ("cvat.xml", CVAT, WANTED),
    ("coco.json", json.dumps(COCO), [WANTED[0], FrameBox(2, "5", 3, 4, 9, 20, 0.5)]),
])  # fmt: skip
def test_boxes_come_in_the_order_of_their_frames(name, text, boxes, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_frame_boxes(tmp_path / name) == boxes


@pytest.mark.parametrize(("name", "text", "line"), [
    ("a.mp4", "", "expected boxes in a .txt (MOT-challenge), .csv, .xml (CVAT) or .json file (COCO), not .mp4"),
    ("a.txt", "\n", "no boxes in it"),
    ("a.txt", "1,2,3\n", "line 1: expected frame, number, left, top, width, height, got '1,2,3'"),
    ("a.txt", "1,2,3,4,5,6\n0,2,3,4,5,6\n", "line 2: frame must be a whole number of at least 1, got '0'"),
    ("a.txt", "1,2,x,4,5,6\n", "line 1: a box must be a number, got 'x'"),
    ("a.txt", "1,2,inf,4,5,6\n", "line 1: a box must be a number, got 'inf'"),
    ("a.txt", "1,7,1,4,5,6\n1,7,3,4,5,6\n", "number 7 stands twice in frame 1"),
    ("a.csv", "frame,x1,y1,x2\n", "no column 'y2'; a header with frame, x1, y1, x2, y2 is needed"),
    ("a.csv", "frame,x1,y1,x2,y2\n1,2,3\n", "line 2: x2 must be a number, got 'None'"),
    ("a.xml", "<annotations><track", "not XML (unclosed token: line 1, column 13)"),
    ("a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "declares entities, which no file of CVAT does"),
    ("a.xml", "<html/>", "expected CVAT's XML for video, whose outermost element is 'annotations'"),
    ("a.json", "{", "not JSON"),
    ("a.json", "[]", "expected COCO's JSON, an object with the lists 'images' and 'annotations'"),
    ("a.json", '{"images": [], "annotations": [{"image_id": 3}]}', "annotation 0: no image has its image_id"),
    ("a.json", '{"images": [{"id": 1}], "annotations": []}',
     "image 0: has no frame_id, and its file_name no number at its end"),
])  # fmt: skip
def test_what_holds_no_boxes_is_refused_in_one_line(name, text, line, tmp_path):
    (tmp_path / name).write_text(text)
    shown = message(read_frame_boxes, tmp_path / name)
    assert shown in (f"{tmp_path / name}: {line}", f"{tmp_path / name}, {line}")
