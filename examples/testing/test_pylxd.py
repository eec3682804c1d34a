import io
import json
import subprocess
import tarfile
import unittest
from urllib.parse import quote

import pylxd
import requests
import requests_unixsocket


def image(padding):
    """Returns an image that LXD accepts: a tarball of metadata.yaml and rootfs."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in {
            "metadata.yaml": b"architecture: x86_64\ncreation_date: 1700000000\nproperties: {os: debian}\n",
            "rootfs/padding": bytes(padding),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


class UploadTest(unittest.TestCase):
    def setUp(self):
        self.daemon = subprocess.Popen(["lxdtest", "-dialect", "lxd50", "-with-parent"], stdout=subprocess.PIPE)
        self.addCleanup(self.stop)
        ready = json.loads(self.daemon.stdout.readline())
        server = ready["servers"][0]
        self.client = pylxd.Client(
            endpoint=server["url"],
            cert=(server["client_certificate"], server["client_key"]),
            verify=server["server_certificate"],
        )
        self.control = "http+unix://" + quote(ready["control"]["socket"], safe="") + "/" + server["name"]

    def stop(self):
        self.daemon.terminate()
        self.daemon.communicate()

    def call(self, method, path, /, **body):
        response = requests_unixsocket.Session().request(method, self.control + path, json=body)
        response.raise_for_status()
        return response.json()

    def test_cut_upload(self):
        fault = self.call("POST", "/inject", fault="cut-request", bytes=100_000, method="POST", path="/1.0/images", times=1)
        with self.assertRaises(requests.exceptions.ConnectionError):
            self.client.images.create(image(10_000_000), wait=True)
        self.assertEqual(self.call("GET", f"/fired?id={fault['id']}")["fired"], 1)
        self.assertEqual(self.call("GET", "/images"), [])
        self.assertEqual(self.call("GET", "/tokens"), [])

        created = self.client.images.create(image(10_000_000), wait=True)
        self.assertEqual([i["fingerprint"] for i in self.call("GET", "/images")], [created.fingerprint])


if __name__ == "__main__":
    unittest.main()
