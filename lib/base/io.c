/* SPDX-License-Identifier: Apache-2.0 */
/* pread and pwrite that finish or say why not. */
#include "base/io.h"

#include <errno.h>
#include <unistd.h>

int io_read_at(int fd, void *data, size_t n_bytes, uint64_t offset)
{
	char *p = data;

	while (n_bytes > 0) {
		ssize_t n = pread(fd, p, n_bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		p += n;
		offset += (uint64_t)n;
		n_bytes -= (size_t)n;
	}
	return 0;
}

int io_write_at(int fd, const void *data, size_t n_bytes, uint64_t offset)
{
	const char *p = data;

	while (n_bytes > 0) {
		ssize_t n = pwrite(fd, p, n_bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		offset += (uint64_t)n;
		n_bytes -= (size_t)n;
	}
	return 0;
}
