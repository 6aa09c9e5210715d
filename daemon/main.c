/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dcmemd: flags, configuration, and the order of starting. Exit status: 0 after a signal asked it to
 * stop, 1 when something failed, 2 for wrong usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "daemon/admin.h"
#include "daemon/server.h"

#ifndef DCMEM_CONFIG_FILE
#define DCMEM_CONFIG_FILE "/etc/dcmem/dcmemd.json"
#endif

static const char usage[] =
	"usage: dcmemd [options]\n"
	"Serves compressed models from one copy in memory to every process of this host.\n"
	"\n"
	"  -c, --config FILE        read FILE instead of " DCMEM_CONFIG_FILE "\n"
	"      --check-config       check the configuration, say what is wrong, and exit\n"
	"      --socket PATH        control socket; the text socket is PATH.text\n"
	"      --budget SIZE        memory for everything: \"4GiB\", \"50%\"\n"
	"      --io auto|uring|epoll\n"
	"      --model PATH[=NAME]  load this container before listening; may be repeated\n"
	"      --model-dir DIR      allow loading from DIR; may be repeated\n"
	"      --workers N          decode threads; 0: one a CPU\n"
	"      --ready-fd N         write \"READY\" to descriptor N when clients can connect\n"
	"      --help, --version\n"
	"\n"
	"Runs in the foreground; SIGTERM or SIGINT stop it. See dcmemd(8), dcmemd.json(5).\n";

enum {
	OPTION_CHECK = 256,
	OPTION_SOCKET,
	OPTION_BUDGET,
	OPTION_IO,
	OPTION_MODEL,
	OPTION_MODEL_DIR,
	OPTION_WORKERS,
	OPTION_READY_FD,
	OPTION_FOREGROUND,
	OPTION_HELP,
	OPTION_VERSION,
};

static const struct option options[] = {
	{"config", required_argument, NULL, 'c'},
	{"check-config", no_argument, NULL, OPTION_CHECK},
	{"socket", required_argument, NULL, OPTION_SOCKET},
	{"budget", required_argument, NULL, OPTION_BUDGET},
	{"io", required_argument, NULL, OPTION_IO},
	{"model", required_argument, NULL, OPTION_MODEL},
	{"model-dir", required_argument, NULL, OPTION_MODEL_DIR},
	{"workers", required_argument, NULL, OPTION_WORKERS},
	{"ready-fd", required_argument, NULL, OPTION_READY_FD},
	{"foreground", no_argument, NULL, OPTION_FOREGROUND},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{NULL, 0, NULL, 0},
};

struct main_flags {
	bool check;
	int ready_fd;
};

static int main_number(const char *flag, const char *text, uint32_t max, uint32_t *ret_number)
{
	char *end;
	unsigned long number = strtoul(text, &end, 10);

	if (text[0] < '0' || text[0] > '9' || *end || number > max)
		return message_set(-EINVAL, "%s: \"%s\" is not a number up to %u", flag, text, max);
	*ret_number = (uint32_t)number;
	return 0;
}

static int main_add_model(struct config *config, const char *text)
{
	const char *equals = strrchr(text, '=');
	_cleanup_(cleanup_memory) char *path =
		memory_strndup(text, equals ? (size_t)(equals - text) : strlen(text));

	if (!path)
		return -ENOMEM;
	return config_add_model(config, "--model", path, equals ? equals + 1 : NULL);
}

static int main_apply(struct config *config, struct main_flags *flags, int option, const char *text)
{
	uint32_t number;
	int r = 0;

	switch (option) {
	case OPTION_CHECK:
		flags->check = true;
		return 0;
	case OPTION_SOCKET:
		return config_set_socket(config, "--socket", text);
	case OPTION_BUDGET:
		return config_set_bytes(&config->store.budget_bytes, "--budget", text);
	case OPTION_IO:
		return config_set_io(config, "--io", text);
	case OPTION_MODEL:
		return main_add_model(config, text);
	case OPTION_MODEL_DIR:
		return config_add_model_dir(config, "--model-dir", text);
	case OPTION_WORKERS:
		return main_number("--workers", text, 1024, &config->store.n_workers);
	case OPTION_READY_FD:
		r = main_number("--ready-fd", text, 1 << 20, &number);
		if (!r && fcntl((int)number, F_GETFD) < 0)
			r = message_set(-EBADF, "--ready-fd: descriptor %u is not open", number);
		if (!r) {
			flags->ready_fd = (int)number;
			(void)fcntl(flags->ready_fd, F_SETFD, FD_CLOEXEC);
		}
		return r;
	}
	return 0;
}

/* Two passes: the file must be read before the flags that override it. */
static int main_configure(int argc, char **argv, struct config *config, struct main_flags *flags)
{
	const char *file = NULL;
	int option, r = 0;

	while ((option = getopt_long(argc, argv, "c:", options, NULL)) != -1) {
		if (option == 'c')
			file = optarg;
		if (option == OPTION_HELP || option == OPTION_VERSION) {
			fputs(option == OPTION_HELP ? usage : "dcmemd " DCMEM_VERSION "\n", stdout);
			exit(0);
		}
		if (option == '?')
			exit(2);
	}
	if (optind < argc) {
		fprintf(stderr, "dcmemd: unexpected argument \"%s\"; see dcmemd --help\n",
			argv[optind]);
		exit(2);
	}
	if (file)
		r = config_read(config, file);
	else if (access(DCMEM_CONFIG_FILE, F_OK) == 0)
		r = config_read(config, DCMEM_CONFIG_FILE);
	optind = 1;
	while (!r && (option = getopt_long(argc, argv, "c:", options, NULL)) != -1)
		r = main_apply(config, flags, option, optarg);
	return r ? r : config_check(config);
}

static int main_serve(const struct config *config, const struct main_flags *flags)
{
	struct server server;
	int r = server_init(&server, config);

	if (!r)
		r = server_preload(&server);
	if (!r && !server.stopping)
		r = server_listen(&server);
	if (!r && !server.stopping) {
		log_line(LOG_LEVEL_NOTICE, "dcmemd " DCMEM_VERSION " listens on %s (%s)",
			 config->socket, loop_name(server.loop));
		if (flags->ready_fd >= 0 && write(flags->ready_fd, "READY\n", 6) != 6)
			log_line(LOG_LEVEL_WARNING, "nobody reads --ready-fd");
		close_fd(flags->ready_fd);
		r = server_run(&server);
	}
	if (r)
		log_line(LOG_LEVEL_ERROR, "%s",
			 message_get()[0] ? message_get() : strerror(r < 0 ? -r : EINVAL));
	server_deinit(&server);
	return r ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct config config;
	struct main_flags flags = {.ready_fd = -1};
	int r;

	admin_setup();
	r = config_init(&config);
	if (!r)
		r = main_configure(argc, argv, &config, &flags);
	if (r) {
		fprintf(stderr, "dcmemd: %s\n", message_get()[0] ? message_get() : strerror(-r));
	} else if (flags.check) {
		puts("the configuration is fine");
	} else {
		log_set_level(config.log_level);
		r = main_serve(&config, &flags);
	}
	config_deinit(&config);
	return r ? 1 : 0;
}
